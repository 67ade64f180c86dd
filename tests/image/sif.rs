//! SIF: byte by byte, as `unsquashfs` reads its partition, and as Apptainer runs it.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::image::{
    AddedContent, Addition, App, Compression, LayerBlob, Layers, Limits, Merged, Origin, SquashfsOptions, When, apptainer_files,
    write_apptainer_sif,
};
use dvrun::oci::{Digest, ImageConfig};
use serde_json::{Value, json};

use super::Bench;
use crate::support::layers::*;
use crate::support::{as_root, finish, genomics, lane};

const CREATED: i64 = 1_700_000_000;

/// Words that a careless script would change.
const WORDS: [&str; 7] = ["", "a b", "$HOME", "`id`", "it's", "\"q\"", "back\\slash"];

fn configuration() -> Value {
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=it's \"$HOME\" `id` \\ }", "OTHER=image", "not.a.name=x"],
            "Entrypoint": ["printf", "<%s>\\n"],
            "Cmd": WORDS,
            "Labels": {"maintainer": "someone \"else\""},
        },
    })
}

fn write(bench: &Bench, merged: &mut Merged, options: &SquashfsOptions) -> PathBuf {
    let whole = configuration();
    let config: ImageConfig = serde_json::from_value(whole.clone()).expect("it is a configuration");
    let origin = Origin {
        bootstrap: "docker".into(),
        from: "example.org/lab/tool:1".into(),
        created: CREATED,
    };
    let files = apptainer_files(merged, &config, &whole["config"], &apps(), &origin);
    assert_eq!(files.unexported, ["not.a.name"]);
    let path = bench.path().join("image.sif");
    write_apptainer_sif(merged, &files, options, &bench.scratch(), &path).expect("the disk has room");
    path
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn apps() -> Vec<App> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        App {
            name: "say-words".into(),
            help: Some("Says words.".into()),
            run: words(&["printf", "<%s>\\n", "$first"]),
            env: [("SAID".to_owned(), "it's $x".to_owned())].into(),
            labels: [("kind".to_owned(), "words".to_owned())].into(),
        },
        App {
            name: "environment".into(),
            run: words(&["printenv"]),
            ..App::default()
        },
    ]
}

#[test]
fn every_byte_is_where_the_format_has_it() {
    let bench = Bench::new();
    let mut merged = bench.merge(Packing::Gzip, &[vec![file("a", "x")]]).unwrap();
    let path = write(&bench, &mut merged, &SquashfsOptions::default());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(bytes.starts_with(b"#!/usr/bin/env run-singularity\n\0"));
    assert_eq!(&bytes[32..48], b"SIF_MAGIC\x0001\x0002\0");
    assert_eq!((number(&bytes, 0x40), number(&bytes, 0x48)), (CREATED as u64, CREATED as u64));
    assert_eq!(
        [0x50, 0x58, 0x60, 0x68, 0x70].map(|at| number(&bytes, at)),
        [44, 48, 4096, 28080, 32176]
    );
    assert_eq!(number(&bytes, 0x78), bytes.len() as u64 - 32176);
    let mut end = 32176;
    for (at, kind) in [0x4001_u32, 0x4006, 0x4006, 0x4004].into_iter().enumerate() {
        let descriptor = &bytes[4096 + 585 * at..][..585];
        assert_eq!(descriptor[..4], kind.to_le_bytes());
        assert_eq!(descriptor[4], 1, "used");
        assert_eq!(descriptor[5..9], u32::try_from(at + 1).unwrap().to_le_bytes());
        assert_eq!(descriptor[9..13], 0xf000_0001_u32.to_le_bytes());
        let (offset, size, padded) = (number(descriptor, 17), number(descriptor, 25), number(descriptor, 33));
        assert_eq!(offset + size, end + padded, "padding is what lies between");
        end = offset + size;
        let content = &bytes[usize::try_from(offset).unwrap()..][..usize::try_from(size).unwrap()];
        match at {
            0 => assert_eq!(content, b"bootstrap: docker\nfrom: example.org/lab/tool:1\n\n"),
            1 => assert!(descriptor[73..].starts_with(b"inspect-metadata.json\0")),
            2 => assert_eq!(serde_json::from_slice::<Value>(content).unwrap(), configuration()["config"]),
            _ => {
                assert_eq!(offset % 4096, 0);
                assert!(content.starts_with(b"hsqs"));
                assert_eq!(descriptor[201..212], [1, 0, 0, 0, 2, 0, 0, 0, b'0', b'2', 0]);
            }
        }
    }
    assert_eq!(end, bytes.len() as u64);
    assert!(
        bytes[4096 + 585 * 4..32176].iter().all(|&byte| byte == 0),
        "unused descriptors are zeros"
    );
}

#[test]
fn the_same_image_gives_the_same_file() {
    let bytes = || {
        let bench = Bench::new();
        let mut merged = bench
            .merge(Packing::Zstd, &[vec![file("a", "x"), folder("tmp").mode(0o700)]])
            .unwrap();
        fs::read(write(&bench, &mut merged, &SquashfsOptions::default())).unwrap()
    };
    assert!(bytes() == bytes());
}

#[test]
fn what_the_image_has_is_kept_where_apptainer_only_needs_a_place() {
    let bench = Bench::new();
    let layer = vec![
        folder("tmp").mode(0o700),
        symlink("var/tmp", "/tmp"),
        file("etc/passwd", "root:x:0:0"),
        symlink("etc/resolv.conf", "/run/nothing"),
        symlink(".singularity.d", "/opt/own"),
        file("singularity", "own"),
    ];
    let mut merged = bench.merge(Packing::Plain, &[layer]).unwrap();
    write(&bench, &mut merged, &SquashfsOptions::default());
    dvrun::image::write_folder(&merged, &bench.out(), None).unwrap();
    let out = bench.out();
    assert_eq!(fs::metadata(out.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::read(out.join("etc/passwd")).unwrap(), b"root:x:0:0");
    assert_eq!(fs::read_link(out.join("etc/resolv.conf")).unwrap(), Path::new("/run/nothing"));
    assert_eq!(
        fs::read_link(out.join("singularity")).unwrap(),
        Path::new(".singularity.d/runscript")
    );
    assert_eq!(fs::read(out.join("etc/hosts")).unwrap(), b"");
    assert!(
        out.join("opt/own/runscript").is_file(),
        "its own link is followed, inside the image"
    );
}

#[test]
fn an_addition_that_cannot_be_is_an_error_and_the_tree_stays_usable() {
    let bench = Bench::new();
    let mut merged = bench
        .merge(Packing::Plain, &[vec![symlink("loop", "loop"), file("a", "x")]])
        .unwrap();
    for path in ["loop/file", "../evil", "scif/apps/../../../evil"] {
        let addition = Addition {
            path: path.into(),
            content: AddedContent::File(Vec::new()),
            when: When::Always,
        };
        assert!(merged.add(&[addition], &bench.scratch()).is_err(), "{path}");
    }
    dvrun::image::write_folder(&merged, &bench.out(), None).unwrap();
    assert_eq!(fs::read(bench.out().join("a")).unwrap(), b"x");
}

/// Apps that an image brings: as Apptainer makes them, and as the SCIF reference tool does.
fn own_apps() -> Vec<Member> {
    let script = |text: &str| format!("#!/bin/sh\n{text}\n");
    vec![
        folder("scif/apps/own/scif/env"),
        file("scif/apps/own/scif/runscript", script("printf 'own <%s>\\n' \"$GREETED\" \"$@\"")).mode(0o755),
        file("scif/apps/own/scif/runscript.help", "Says it itself.\n"),
        file("scif/apps/own/scif/test", script("printf 'tested <%s>\\n' \"$@\"")).mode(0o755),
        file("scif/apps/own/scif/env/90-environment.sh", "export GREETED=\"it's \\$x\"\n"),
        file("scif/apps/tool/scif/runscript", script("printf 'tool <%s>\\n' \"$@\"")).mode(0o755),
        file("scif/apps/tool/scif/environment.sh", "export TOOL=1\n"),
        file("scif/apps/tool/scif/tool.scif", "%apprun tool\n"),
    ]
}

/// The real image's layers, from its layout, and [`own_apps`].
fn real(bench: &Bench, layout: &Path) -> Merged {
    let blob = |digest: &str| layout.join("blobs").join(digest.replacen(':', "/", 1));
    let json = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).expect("the layout is whole")).expect("JSON");
    let index = json(layout.join("index.json"));
    let manifest = json(blob(index["manifests"][0]["digest"].as_str().expect("a digest")));
    let layers = manifest["layers"].as_array().expect("layers");
    let reading = Layers::new(layers.len() + 1, &bench.scratch(), Limits::default());
    let own = bench.blobs(Packing::Gzip, &[archive(&own_apps())]).remove(0);
    reading.add(layers.len(), own);
    for (at, layer) in layers.iter().enumerate() {
        let digest = layer["digest"].as_str().expect("a digest");
        reading.add(
            at,
            LayerBlob {
                path: blob(digest),
                digest: digest.parse::<Digest>().expect("a digest"),
                diff_id: None,
            },
        );
    }
    reading.finish().expect("it is a good image")
}

/// `DVRUN_TEST_APPTAINER`: the words of a command that is Apptainer; otherwise `apptainer`.
fn apptainer(args: &[&str]) -> Command {
    let words = env::var("DVRUN_TEST_APPTAINER").unwrap_or_else(|_| "apptainer".into());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().expect("a command"));
    command.args(words).args(args);
    command
}

#[test]
fn apptainer_runs_it_as_root() {
    // Apptainer itself runs as an ordinary user, in a root of its own that only root can enter.
    if !as_root() {
        return;
    }
    if !lane(
        "apptainer: not installed",
        apptainer(&["version"]).output().is_ok_and(|output| output.status.success()),
    ) {
        return;
    }
    let Some(layout) = genomics() else { return };
    for compression in [Compression::Zstd(3), Compression::Gzip(6)] {
        let bench = Bench::new();
        // Apptainer may be another user's.
        fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = write(
            &bench,
            &mut real(&bench, &layout),
            &SquashfsOptions {
                compression,
                ..Default::default()
            },
        );
        let path = path.to_str().expect("the test chose it");
        let run = |args: &[&str]| finish(apptainer(args).env("APPTAINER_BIND", "").env("OTHER", "caller"));
        let own_lines = |who: &str, words: &[&str]| words.iter().map(|word| format!("{who} <{word}>\n")).collect::<String>();
        let lines = |words: &[&str]| words.iter().map(|word| format!("<{word}>\n")).collect::<String>();

        assert_eq!(run(&["run", path]).ok().stdout, lines(&WORDS), "Cmd");
        assert_eq!(
            run(&[&["run", path], &WORDS[1..]].concat()).ok().stdout,
            lines(&WORDS[1..]),
            "arguments"
        );
        assert_eq!(
            run(&[&["exec", path, "printf", "<%s>\\n"], &WORDS[..]].concat()).ok().stdout,
            lines(&WORDS)
        );
        let greeting = run(&["exec", path, "printenv", "GREETING", "OTHER", "PATH"]).ok().stdout;
        assert!(
            greeting.starts_with("it's \"$HOME\" `id` \\ }\nimage\n/usr/local/bin:/usr/bin:/bin"),
            "{greeting}"
        );
        assert_eq!(
            run(&["exec", "--env", "OTHER=caller", path, "printenv", "OTHER"]).ok().stdout,
            "caller\n"
        );
        run(&["exec", path, "samtools", "--version"]).ok().says("samtools 1.16");
        run(&["exec", path, "sh", "-c", "exit 7"]).exits(7);
        run(&["test", path]).ok();
        let inspected = run(&["inspect", "--json", "--all", path]).ok().json();
        let attributes = &inspected["data"]["attributes"];
        assert_eq!(attributes["labels"]["maintainer"], "someone \"else\"");
        assert_eq!(attributes["deffile"], "bootstrap: docker\nfrom: example.org/lab/tool:1\n\n");
        assert!(attributes["runscript"].as_str().expect("text").contains("exec 'printf'"));
        assert_eq!(
            run(&["inspect", "--list-apps", path]).ok().stdout,
            "call\nenvironment\nown\nsay-words\ntool\nversions\n",
            "the real image's, those added here, the workflow's"
        );
        assert_eq!(
            run(&[&["run", "--app", "own", path], &WORDS[1..]].concat()).ok().stdout,
            own_lines("own", &[&["it's $x"], &WORDS[1..]].concat())
        );
        run(&["run-help", "--app", "own", path]).ok().says("Says it itself.\n");
        assert_eq!(
            run(&["test", "--app", "own", path, "a b", "$x"]).ok().stdout,
            own_lines("tested", &["a b", "$x"])
        );
        assert_eq!(
            run(&[&["run", "--app", "tool", path], &WORDS[1..]].concat()).ok().stdout,
            own_lines("tool", &WORDS[1..])
        );
        assert_eq!(
            run(&["run", "--app", "say-words", path, "a b", "$x"]).ok().stdout,
            lines(&["$first", "a b", "$x"])
        );
        assert_eq!(run(&["run-help", "--app", "say-words", path]).ok().stdout, "Says words.\n");
        let variables = ["SCIF_APPNAME", "SCIF_APPROOT", "SCIF_APPDATA", "SCIF_APPRUN_say_words"];
        let said = run(&[&["run", "--app", "environment", path], &variables[..]].concat()).ok().stdout;
        assert_eq!(
            said,
            "environment\n/scif/apps/environment\n/scif/data/environment\n/scif/apps/say-words/scif/runscript\n"
        );
        assert_eq!(
            run(&["exec", "--app", "say-words", path, "printenv", "SAID"]).ok().stdout,
            "it's $x\n"
        );
        // What is typed comes as a file: Apptainer asks for no terminal.
        let typed = bench.path().join("typed");
        fs::write(&typed, "printf '<%s>\\n' \"it's\" '$x' \"$GREETING\"; exit 5\n").unwrap();
        let mut shell = apptainer(&["shell", path]);
        let shell = shell
            .env("APPTAINER_BIND", "")
            .stdin(fs::File::open(&typed).unwrap())
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&shell.stdout);
        assert!(shown.contains("<it's>\n<$x>\n<it's \"$HOME\" `id` \\ }>\n"), "{shell:#?}");
        assert_eq!(shell.status.code(), Some(5), "{shell:#?}");
        let none = run(&["run", "--app", "nothing", path]);
        assert!(!none.status.success(), "{none:#}");
        run(&["sif", "list", path]).ok().says("FS (Squashfs/*System/amd64)");
        run(&["verify", path]).complains("signature");
    }
}
