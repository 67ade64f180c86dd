//! The real `docker-registry` with TLS, with passwords, and with images of the first manifest format.

use std::fs;
use std::path::Path;
use std::process::Command;

use dvrun::net::{Client, Options, silent};
use dvrun::oci::Digest;
use dvrun::registry::{Credential, Credentials, Session, TagPolicy, config, resolve};
use dvrun::store::Store;
use serde_json::Value;
use tempfile::tempdir;

use super::{amd64, client, fetch, fetch_with, options, source};
use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, finish, lane};

/// skopeo, from a layout to a reference.
fn push(from: &str, to: &str, options: &[&str]) {
    finish(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                "--insecure-policy",
            ])
            .args(options)
            .args([from, to]),
    )
    .ok();
}

/// An authority, `ca.pem`, and its certificate for 127.0.0.1. `None` without openssl.
pub(super) fn certificate(dir: &Path) -> Option<()> {
    let there = Command::new("openssl")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success());
    lane("openssl", there).then(|| {
        request(dir, "ca", "-addext keyUsage=keyCertSign");
        signed(dir, "cert", "subjectAltName=IP:127.0.0.1");
    })
}

/// A certificate of that authority, `NAME.pem` with `NAME-key.pem`, with one extension.
pub(super) fn signed(dir: &Path, name: &str, extension: &str) {
    let leaf = format!("-CA ca.pem -CAkey ca-key.pem -addext {extension} -addext basicConstraints=critical,CA:FALSE");
    request(dir, name, &leaf);
}

fn request(dir: &Path, name: &str, more: &str) {
    let mut command = Command::new("openssl");
    let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    command.current_dir(dir).args(key.split(' ')).args(more.split(' '));
    let files = format!("-subj /CN={name} -keyout {name}-key.pem -out {name}.pem");
    finish(command.args(files.split(' '))).ok();
}

#[tokio::test]
async fn an_own_authority_is_trusted_when_it_is_named() {
    let dir = tempdir().unwrap();
    if certificate(dir.path()).is_none() {
        return;
    }
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls = format!("tls: {{certificate: '{}', key: '{}'}}", path("cert.pem"), path("cert-key.pem"));
    let Some(registry) = Registry::start_with(&tls, "") else { return };
    image(&[&gz(b"x")]).write(dir.path(), "x");
    let name = format!("docker://{}/lab/x:1", registry.host());
    push(&format!("oci:{}:x", dir.path().display()), &name, &[]);
    let cache = tempdir().unwrap();
    // Not trusted: no way around it, and no plain HTTP though it is this machine.
    let error = fetch(&client(), cache.path(), &name).await.unwrap_err();
    assert!(format!("{error:?}").to_lowercase().contains("certificate"), "{error:?}");
    let trusting = Options {
        ca_certificates: vec![dir.path().join("ca.pem")],
        ..options()
    };
    let (_, pulled) = fetch(&Client::new(trusting).unwrap(), cache.path(), &name).await.unwrap();
    assert_eq!(pulled.layers.len(), 1);
}

#[tokio::test]
async fn passwords_from_callers_and_from_files() {
    let dir = tempdir().unwrap();
    // ada:hush
    let hash = "ada:$2b$04$z31CZYO8LOJapg5T1qzRbO4bSDNojoqfLGkiQCyZWMGvbudPMHN0S\n";
    fs::write(dir.path().join("htpasswd"), hash).unwrap();
    let auth = format!(
        "auth: {{htpasswd: {{realm: lab, path: '{}'}}}}",
        dir.path().join("htpasswd").display()
    );
    let Some(registry) = Registry::start_with("", &auth) else { return };
    image(&[&gz(b"x")]).write(dir.path(), "x");
    let name = format!("docker://{}/lab/x:1", registry.host());
    push(&format!("oci:{}:x", dir.path().display()), &name, &["--dest-creds=ada:hush"]);

    let pull = async |credentials: &Credentials| {
        let cache = tempdir().unwrap();
        fetch_with(&client(), cache.path(), &name, credentials, TagPolicy::Ask).await
    };
    let error = pull(&Credentials::none()).await.unwrap_err();
    assert!(error.to_string().contains("UNAUTHORIZED"), "{error}");
    let mut told = Credentials::none();
    let password = |password: &str| Credential::Password {
        user: "ada".to_owned(),
        password: password.to_owned(),
    };
    told.insert(&registry.host(), password("wrong-secret"));
    let error = pull(&told).await.unwrap_err();
    assert!(
        error.to_string().contains("UNAUTHORIZED") && !format!("{error:?}").contains("secret"),
        "{error:?}"
    );
    told.insert(&registry.host(), password("hush"));
    pull(&told).await.unwrap();

    let file = dir.path().join("config.json");
    fs::write(
        &file,
        format!(r#"{{"auths": {{"{}": {{"auth": "YWRhOmh1c2g="}}}}}}"#, registry.host()),
    )
    .unwrap();
    pull(&Credentials::from_files(vec![file.clone()])).await.unwrap();

    fs::write(&file, r#"{"credsStore": "dvrun-test-there-is-no-such-helper"}"#).unwrap();
    let error = pull(&Credentials::from_files(vec![file])).await.unwrap_err();
    assert!(error.to_string().contains("helper could not be run"), "{error}");
}

#[tokio::test]
async fn schema_1_is_read_as_skopeo_reads_it() {
    let Some(registry) = Registry::start_with("", "compatibility: {schema1: {enabled: true}}") else {
        return;
    };
    let dir = tempdir().unwrap();
    let layers = [gz(b"lower"), gz(b"upper")];
    image(&layers.each_ref().map(Vec::as_slice)).write(dir.path(), "x");
    // The format that signs cannot start from OCI: over schema 2.
    let (v2, name) = (
        format!("docker://{}/lab/v2s2:1", registry.host()),
        format!("docker://{}/lab/v2s1:1", registry.host()),
    );
    push(&format!("oci:{}:x", dir.path().display()), &v2, &["--format=v2s2"]);
    push(&v2, &name, &["--format=v2s1"]);

    let cache = tempdir().unwrap();
    let (resolved, pulled) = fetch(&client(), cache.path(), &name).await.unwrap();
    let got: Vec<_> = pulled.layers.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(got == layers, "layers in their order");
    assert_eq!(Digest::sha256(&resolved.manifest), resolved.digest);
    assert!(!String::from_utf8_lossy(&resolved.manifest).contains("signatures"));
    let seen = finish(Command::new("skopeo").args(["inspect", "--tls-verify=false", "--config", &name])).ok();
    let seen: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!(serde_json::to_value(&pulled.config.config.env).unwrap(), seen["config"]["Env"]);
    assert_eq!(
        serde_json::to_value(&pulled.config.config.entrypoint).unwrap(),
        seen["config"]["Entrypoint"]
    );
    assert_eq!(pulled.config.architecture, seen["architecture"]);
    // As a layout it is an OCI image with all that OCI wants to know.
    let sandbox = Sandbox::new();
    let said = finish(sandbox.dvrun().args(["pull", &name, "--format", "oci", "-o", "out"])).ok();
    let layout = format!("oci:{}:1", sandbox.work().join("out").display());
    let seen = finish(Command::new("skopeo").args(["inspect", "--config", &layout])).ok().json();
    let diff_ids = [Digest::sha256(b"lower"), Digest::sha256(b"upper")].map(|digest| digest.to_string());
    assert_eq!(seen["rootfs"]["diff_ids"], serde_json::json!(diff_ids));
    assert_eq!(seen["config"]["Env"], serde_json::json!(pulled.config.config.env));
    let manifest = finish(Command::new("skopeo").args(["inspect", "--raw", &layout])).ok();
    assert!(
        said.stdout.starts_with(&Digest::sha256(manifest.stdout.as_bytes()).to_string()),
        "{said}"
    );
    assert_eq!(manifest.json()["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let copy = format!("oci:{}:1", sandbox.work().join("copy").display());
    finish(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", &layout, &copy])).ok();
    finish(sandbox.dvrun().args(["inspect", "oci:out:1"])).ok().says("/bin/true");

    // By the digest that others know it by, and from the store alone.
    let digest = finish(Command::new("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}", &name])).ok();
    assert_eq!(digest.stdout.trim(), resolved.digest.to_string());
    let pinned = format!("docker://{}/lab/v2s1@{}", registry.host(), resolved.digest);
    let fresh = tempdir().unwrap();
    assert_eq!(fetch(&client(), fresh.path(), &pinned).await.unwrap().0.digest, resolved.digest);
    drop(registry);
    let (client, credentials, store) = (client(), Credentials::none(), Store::new(fresh.path()));
    let offline = Session::new(&client, &store, &credentials, TagPolicy::Offline, &silent);
    let again = resolve(&offline, &source(&pinned), &amd64()).await.unwrap();
    assert_eq!(config(&offline, &again).await.unwrap(), pulled.config);
}
