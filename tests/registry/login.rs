//! Credentials through the program: kept as Docker keeps them, tried first, found again, forgotten.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, dvrun, finish};

/// `ada:hush`, as htpasswd writes it.
const HTPASSWD: &str = "ada:$2b$04$z31CZYO8LOJapg5T1qzRbO4bSDNojoqfLGkiQCyZWMGvbudPMHN0S\n";

/// A registry that wants ada's password, with `lab/x:1` in it.
pub(super) fn guarded(sandbox: &Sandbox) -> Option<(Registry, String)> {
    let passwords = sandbox.path().join("htpasswd");
    fs::write(&passwords, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: lab, path: '{}'}}}}", passwords.display());
    let registry = Registry::start_with("", &auth)?;
    let layout = sandbox.path().join("layout");
    image(&[&gz(b"x")]).write(&layout, "x");
    let name = format!("docker://{}/lab/x:1", registry.host());
    finish(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--insecure-policy",
                "--dest-creds=ada:hush",
            ])
            .arg(format!("oci:{}:x", layout.display()))
            .arg(&name),
    )
    .ok();
    Some((registry, name))
}

fn login(sandbox: &Sandbox, mut command: Command, host: &str, password: &str) -> Output {
    let file = sandbox.path().join("typed");
    fs::write(&file, password).unwrap();
    command
        .args(["login", host, "--username", "ada", "--password-stdin"])
        .stdin(Stdio::from(File::open(file).unwrap()))
        .output()
        .unwrap()
}

/// Logs ada in.
pub(super) fn keep_login(sandbox: &Sandbox, host: &str) {
    let done = login(sandbox, sandbox.dvrun(), host, "hush\n");
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
}

fn config(sandbox: &Sandbox) -> PathBuf {
    sandbox.home().join(".docker/config.json")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_login_is_tried_kept_used_and_forgotten() {
    let sandbox = Sandbox::new();
    let Some((registry, name)) = guarded(&sandbox) else { return };
    let host = registry.host();
    finish(sandbox.dvrun().args(["inspect", &name])).exits(3).complains("UNAUTHORIZED");
    finish(sandbox.dvrun().args(["whoami", &host])).exits(1).complains("dvrun login");

    let refused = login(&sandbox, sandbox.dvrun(), &host, "wrong-secret\n");
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert!(!said(&refused).contains("wrong-secret"));
    assert!(!config(&sandbox).exists(), "nothing is kept that does not work");

    let done = login(&sandbox, sandbox.dvrun(), &host, "hush\n");
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert!(done.stdout.is_empty() && !said(&done).contains("hush"));
    assert_eq!(
        json_of(&config(&sandbox)),
        json!({"auths": {host.as_str(): {"auth": "YWRhOmh1c2g="}}})
    );
    assert_eq!(fs::metadata(config(&sandbox)).unwrap().permissions().mode() & 0o777, 0o600);

    finish(sandbox.dvrun().args(["whoami", &host])).ok().says("ada\n");
    let all = finish(sandbox.dvrun().arg("whoami")).ok();
    assert_eq!(all.stdout, format!("{host}  ada  {}\n", config(&sandbox).display()));
    let all = finish(sandbox.dvrun().args(["whoami", "--json"])).ok().json();
    assert_eq!((&all[0]["registry"], &all[0]["user"]), (&host.as_str().into(), &"ada".into()));
    finish(sandbox.dvrun().args(["inspect", &name])).ok().says("/bin/true");
    let tags = finish(sandbox.dvrun().args(["tags", &format!("docker://{host}/lab/x")])).ok();
    assert_eq!(tags.stdout, "1\n");
    let file = sandbox.write(
        "flow.yaml",
        format!("version: 1\nname: f\nimages: {{x: \"{name}\"}}\nstages: {{a: {{image: x, run: 'true'}}}}\n"),
    );
    finish(sandbox.dvrun().arg("plan").arg(&file)).ok();

    finish(sandbox.dvrun().args(["logout", &host])).ok();
    assert_eq!(json_of(&config(&sandbox)), json!({"auths": {}}));
    finish(sandbox.dvrun().args(["inspect", &name])).exits(3);
    finish(sandbox.dvrun().args(["logout", &host])).ok().complains("no credentials");
    let none = finish(sandbox.dvrun().arg("whoami")).ok();
    assert_eq!(none.stdout, "");
    none.complains("dvrun login");
}

#[test]
fn a_login_without_a_password_or_a_registry_is_refused() {
    let sandbox = Sandbox::new();
    finish(sandbox.dvrun().args(["login", "ghcr.io"]))
        .exits(2)
        .complains("--password-stdin");
    finish(sandbox.dvrun().args(["login", "ghcr.io", "--password-stdin"])).exits(2);
    finish(sandbox.dvrun().args(["login", "not a host", "-u", "ada"]))
        .exits(2)
        .complains("host");
    let empty = login(&sandbox, sandbox.dvrun(), "127.0.0.1:1", "\n");
    assert_eq!(empty.status.code(), Some(2), "{}", said(&empty));
    finish(dvrun().args(["login", "--help"])).ok().says("--password-stdin");
}

/// A helper that keeps what it is given in `vault`, one file a server, and writes down what it was asked.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$1" >> asked
case $1 in
store) cat > vault ;;
get) read -r server; test -f vault || { echo "credentials not found in native keychain"; exit 1; }
     grep -q "\"ServerURL\":\"$server\"" vault && cat vault ;;
erase) rm vault ;;
list) test -f vault || { echo '{}'; exit 0; }
      sed 's/.*"ServerURL":"\([^"]*\)","Username":"\([^"]*\)".*/{"\1":"\2"}/' vault ;;
*) exit 1 ;;
esac
"#;

#[test]
fn a_credential_helper_keeps_gives_and_forgets() {
    let sandbox = Sandbox::new();
    let Some((registry, name)) = guarded(&sandbox) else { return };
    let host = registry.host();
    let bin = sandbox.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-lab");
    fs::write(&helper, HELPER).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let dvrun = || {
        let mut command = sandbox.dvrun();
        command.env("PATH", &path).env("DOCKER_CONFIG", sandbox.path().join("docker"));
        command
    };
    fs::create_dir(sandbox.path().join("docker")).unwrap();
    let config = sandbox.path().join("docker/config.json");
    fs::write(&config, json!({"credHelpers": {host.as_str(): "lab"}}).to_string()).unwrap();
    finish(dvrun().args(["inspect", &name])).exits(3).complains("UNAUTHORIZED");

    let done = login(&sandbox, dvrun(), &host, "hush");
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert!(
        !fs::read_to_string(&config).unwrap().contains("YWRhOmh1c2g="),
        "the helper alone has it"
    );
    assert!(fs::read_to_string(bin.join("vault")).unwrap().contains("\"Secret\":\"hush\""));
    finish(dvrun().args(["whoami", &host])).ok().says("ada");
    let kept = format!("{host}  ada  docker-credential-lab\n");
    assert_eq!(finish(dvrun().arg("whoami")).ok().stdout, kept);
    // One that keeps all of them is asked what it has.
    let own = fs::read_to_string(&config).unwrap();
    fs::write(&config, r#"{"credsStore": "lab"}"#).unwrap();
    assert_eq!(finish(dvrun().arg("whoami")).ok().stdout, kept);
    fs::write(&config, own).unwrap();
    finish(dvrun().args(["inspect", &name])).ok();
    finish(dvrun().args(["logout", &host])).ok();
    assert!(!bin.join("vault").exists());
    finish(dvrun().args(["inspect", &name])).exits(3);
    let asked = fs::read_to_string(bin.join("asked")).unwrap();
    assert!(
        asked.contains("get") && asked.contains("store") && asked.contains("erase"),
        "{asked}"
    );
    // One that fails is said to have failed; its words may be secrets.
    fs::write(&helper, "#!/bin/sh\ncat > /dev/null\necho hush-hush\nexit 1\n").unwrap();
    let failed = finish(dvrun().args(["inspect", &name])).exits(3).complains("docker-credential-lab");
    assert!(!failed.stderr.contains("hush-hush"));
}

#[test]
fn podmans_file_is_found() {
    let sandbox = Sandbox::new();
    let Some((registry, name)) = guarded(&sandbox) else { return };
    let file = sandbox.path().join("auth.json");
    fs::write(
        &file,
        json!({"auths": {format!("{}/lab", registry.host()): {"auth": "YWRhOmh1c2g="}}}).to_string(),
    )
    .unwrap();
    finish(sandbox.dvrun().env("REGISTRY_AUTH_FILE", &file).args(["inspect", &name])).ok();
    fs::create_dir_all(sandbox.home().join(".config/containers")).unwrap();
    fs::rename(&file, sandbox.home().join(".config/containers/auth.json")).unwrap();
    finish(sandbox.dvrun().args(["inspect", &name])).ok();
}

#[test]
fn inspect_and_workflows_take_every_source() {
    let sandbox = Sandbox::new();
    let layout = sandbox.work().join("layout");
    let image = image(&[&gz(b"x")]);
    image.write(&layout, "x");
    finish(Command::new("tar").args(["-cf", "../x.tar", "."]).current_dir(&layout)).ok();
    let manifest = &image.blobs[&image.root.to_string()];
    let config = serde_json::from_slice::<Value>(manifest).unwrap()["config"]["digest"].clone();
    for source in ["oci:layout:x", "oci-archive:x.tar:x", "oci-archive:x.tar"] {
        let raw = finish(sandbox.dvrun().args(["inspect", "--raw", source])).ok();
        assert_eq!(raw.stdout.as_bytes(), manifest, "{source}");
        let blob = finish(sandbox.dvrun().args(["inspect", "--config", source])).ok();
        assert_eq!(blob.stdout.as_bytes(), image.blobs[config.as_str().unwrap()], "{source}");
        let shown = finish(sandbox.dvrun().args(["inspect", "--json", source])).ok().json();
        assert_eq!(shown["digest"], image.root.to_string(), "{source}");
        assert_eq!(shown["config"]["Entrypoint"], json!(["/bin/true"]), "{source}");
        let flow = |source: &str| format!("version: 1\nname: f\nimages: {{x: \"{source}\"}}\nstages: {{a: {{image: x, run: 'true'}}}}\n");
        let file = sandbox.write("flow.yaml", flow(source));
        let plan = finish(sandbox.dvrun().args(["plan", "--json"]).arg(&file)).ok().json();
        assert!(plan.to_string().contains(&image.root.to_string()), "{plan}");
        for (bad, hint) in [
            ("shub://lab/x", "Singularity Hub"),
            ("library://lab/x", "docker://HOST"),
            ("docker://Lab/X:1", "lower case"),
            ("docker-archive:", "names no image"),
            ("oci-archve:x.tar", "did you mean `oci-archive:x.tar`"),
        ] {
            let file = sandbox.write("bad.yaml", flow(bad));
            finish(sandbox.dvrun().arg("validate").arg(&file)).exits(2).complains(hint);
        }
    }
}
