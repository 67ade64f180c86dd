//! The rules of the house: what the code may know, how large a file may grow, and that what is said in the documents is there.

mod code;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::support::{checkout, dvrun, finish};
use code::{code_lines, imports};

/// What each part of `src` may import from the others. `workflow::Data` allows the names that begin so.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("workflow", &["oci"]),
    ("lock", &["oci", "workflow"]),
    ("binds", &["workflow"]),
    ("plan", &["binds", "lock", "oci", "workflow"]),
    ("net", &["oci"]),
    ("store", &["oci"]),
    ("registry", &["net", "oci", "store"]),
    ("data", &["net", "oci", "store", "workflow::Data"]),
    ("squashfs", &[]),
    ("sif", &["oci"]),
    ("image", &["oci", "sif", "squashfs", "store"]),
    ("runtime", &["oci", "squashfs"]),
    ("state", &["plan", "workflow"]),
    (
        "engine",
        &["binds", "lock", "oci", "plan", "runtime", "sif", "state", "store", "workflow"],
    ),
    (
        "fetch",
        &[
            "binds", "data", "image", "lock", "net", "oci", "plan", "registry", "sif", "squashfs", "state", "store", "workflow",
        ],
    ),
    (
        "cli",
        &[
            "binds", "data", "engine", "fetch", "image", "lock", "net", "oci", "plan", "registry", "runtime", "sif", "squashfs", "state",
            "store", "workflow",
        ],
    ),
];

const LONGEST_FILE: usize = 600;
const LARGEST_QUICKSTART_IMAGE: u64 = 2 << 20;

#[test]
fn each_part_imports_only_what_it_may_know() {
    let mut found = Vec::new();
    for file in sources("src") {
        let Some(part) = part_of(&file.path) else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == part) else {
            found.push(format!("{}: the part `{part}` is not in the table of tests/house.rs", file.name));
            continue;
        };
        for (line, path) in imports(&file.text, file.depth()) {
            let own = path == part || path.starts_with(&format!("{part}::"));
            let known = allowed.iter().any(|allowed| match allowed.split_once("::") {
                Some(_) => path.starts_with(allowed),
                None => path.split("::").next() == Some(allowed),
            });
            if !own && !known {
                let list = if allowed.is_empty() {
                    "nothing".to_owned()
                } else {
                    allowed.join(", ")
                };
                found.push(format!(
                    "{}:{line}: `{part}` must not know `{path}`; it may import {list}",
                    file.name
                ));
            }
        }
    }
    none(&found);
}

#[test]
fn unsafe_code_is_in_runtime_alone() {
    none(&search("src", |file, line| {
        let allowed = part_of(&file.path).as_deref() == Some("runtime") || line.contains("// memory map");
        let has = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        (has && !allowed).then_some("unsafe outside src/runtime (a memory map says `// memory map` on the line)")
    }));
}

#[test]
fn the_library_does_not_unwrap() {
    none(&search("src", |_, line| {
        line.contains(".unwrap()")
            .then_some("unwrap in the library: return the error, or expect(\"why it holds\")")
    }));
}

#[test]
fn nothing_is_left_to_do() {
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "#[ignore"];
    let mut found = Vec::new();
    for file in sources("src").into_iter().chain(sources("tests")) {
        if file.name.starts_with("tests/house") {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                found.push(format!("{}:{}: {mark}", file.name, number + 1));
            }
        }
    }
    none(&found);
}

#[test]
fn no_file_has_outgrown_its_room() {
    let long = sources("src").into_iter().chain(sources("tests"));
    let long = long.filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > LONGEST_FILE).then(|| {
            format!(
                "{}: {lines} lines are more than {LONGEST_FILE}: which two concepts are in it?",
                file.name
            )
        })
    });
    none(&long.collect::<Vec<_>>());
}

#[test]
fn tests_find_the_binary_through_support() {
    none(&search("tests", |file, line| {
        let direct = line.contains("env!(\"CARGO_");
        (direct && file.name != "tests/support/checkout.rs")
            .then_some("use support::checkout() or support::dvrun(): the checkout may be moved")
    }));
}

#[test]
fn every_workflow_is_valid() {
    let mut seen = 0;
    for file in files(&checkout().join("workflows")) {
        if file.extension().is_some_and(|extension| extension == "yaml") {
            finish(dvrun().arg("validate").arg(&file)).ok();
            seen += 1;
        }
    }
    assert!(seen > 0, "no workflow was found");
}

#[test]
fn the_commands_of_the_documents_are_there() {
    let mut found = Vec::new();
    for name in ["README.md", "tests/README.md"] {
        let text = fs::read_to_string(checkout().join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
        for (number, line) in code::fenced(&text) {
            let line = line.trim_start_matches("$ ");
            let words: Vec<&str> = line.split_whitespace().collect();
            let called = match words.as_slice() {
                ["dvrun", rest @ ..] => rest,
                ["cargo", "run", rest @ ..] => rest.split(|word| *word == "--").nth(1).unwrap_or_default(),
                _ => &[],
            };
            if let Some(command) = called.first().filter(|word| !word.starts_with('-')) {
                let help = finish(dvrun().args([command, "--help"]));
                if !help.status.success() {
                    found.push(format!("{name}:{number}: there is no `dvrun {command}`"));
                }
            }
            for word in words.iter().filter(|word| {
                ["workflows/", "tests/", "slurm/", ".ci/"]
                    .iter()
                    .any(|folder| word.starts_with(folder))
            }) {
                // A `work` folder is made by running.
                if !word.contains("/work/") && !checkout().join(word).exists() {
                    found.push(format!("{name}:{number}: there is no {word}"));
                }
            }
        }
    }
    none(&found);
}

#[test]
fn the_quickstart_image_is_small() {
    let sizes = files(&checkout().join("workflows/quickstart/image")).into_iter();
    let total: u64 = sizes.map(|file| fs::metadata(&file).expect("it was just listed").len()).sum();
    assert!(total > 0, "there is no image");
    assert!(
        total <= LARGEST_QUICKSTART_IMAGE,
        "{total} bytes are more than {LARGEST_QUICKSTART_IMAGE}"
    );
}

/// The checkout's own place and the places handed to the tests belong to one machine.
#[test]
fn no_path_of_one_machine_is_written_down() {
    let checkout = checkout().canonicalize().expect("the checkout is there");
    let mut places = vec![PathBuf::from("/Users/"), checkout.clone()];
    places.extend(checkout.parent().map(Path::to_owned));
    for variable in [
        "DVRUN_TEST_ORIGIN",
        "DVRUN_SHARED",
        "DVRUN_TEST_GENOMICS",
        "CARGO_HOME",
        "CARGO_TARGET_DIR",
    ] {
        places.extend(std::env::var_os(variable).map(PathBuf::from));
    }
    // `/srv` alone says nothing; `/srv/build` does.
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let places: Vec<&String> = places.iter().filter(|place| place.matches('/').count() >= 2).collect();
    let mut found = Vec::new();
    for path in files(&checkout) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(&checkout).expect("it was found below").display();
        for (number, line) in text.lines().enumerate() {
            let own = name.to_string() == "tests/house.rs" && line.contains("PathBuf::from");
            for place in places.iter().filter(|place| !own && line.contains(place.as_str())) {
                found.push(format!("{name}:{}: {place}", number + 1));
            }
        }
    }
    none(&found);
}

/// A Rust file; `name` is relative to the checkout.
struct Source {
    path: PathBuf,
    name: String,
    text: String,
}

impl Source {
    /// How many `super::` lead from the file's module to the crate's root.
    fn depth(&self) -> usize {
        let below = Path::new(&self.name).components().count() - 1;
        if self.name.ends_with("/mod.rs") { below - 1 } else { below }
    }
}

/// All Rust files below `folder`, sorted.
fn sources(folder: &str) -> Vec<Source> {
    let rust = files(&checkout().join(folder)).into_iter();
    let rust = rust.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let found: Vec<Source> = rust
        .map(|path| Source {
            name: path.strip_prefix(checkout()).expect("it was found below").display().to_string(),
            text: fs::read_to_string(&path).expect("Rust files are text"),
            path,
        })
        .collect();
    assert!(!found.is_empty(), "no Rust file in {folder}");
    found
}

/// `src/oci/digest.rs` is of `oci`, `src/plan.rs` of `plan`; `lib.rs` and `main.rs` are of none.
fn part_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(checkout().join("src")).ok()?;
    let part = inside.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs");
    (part != "lib" && part != "main").then(|| part.to_owned())
}

/// Lines of code (no comments, and in `src` no unit tests) about which `rule` has something to say.
fn search(folder: &str, rule: impl Fn(&Source, &str) -> Option<&'static str>) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources(folder) {
        for (number, line) in code_lines(&file.text) {
            if let Some(wrong) = rule(&file, line) {
                found.push(format!("{}:{number}: {wrong}", file.name));
            }
        }
    }
    found
}

/// Every file below `folder` that is the project's own, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let own = |entry: &DirEntry| {
        let name = entry.file_name().to_str();
        let made = name.is_some_and(|name| [".git", "target", ".dvrun", "work"].contains(&name));
        entry.depth() == 0 || !made
    };
    let entries = WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(own);
    let entries = entries.map(|entry| entry.expect("the checkout is readable"));
    entries
        .filter(|entry| entry.file_type().is_file())
        .map(DirEntry::into_path)
        .collect()
}

#[track_caller]
fn none(violations: &[String]) {
    assert!(violations.is_empty(), "{} broken:\n  {}", violations.len(), violations.join("\n  "));
}
