//! What must not be told: to servers that it is not meant for, to the screen, to the disk.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dvrun::net::{Client, Content, Download, NetError, Options, Request, silent};
use dvrun::oci::Digest;
use serde_json::json;
use tempfile::tempdir;
use walkdir::WalkDir;

use super::options;
use super::secured::certificate;
use crate::support::faults::{Faults, Reply};
use crate::support::image::{gz, image};
use crate::support::{Sandbox, finish, wait_until};

/// OpenSSL's own server: each file in its folder is a whole answer, headers and all. Ended when dropped.
struct TlsServer {
    server: Child,
    port: u16,
}

impl TlsServer {
    fn start(dir: &Path) -> TlsServer {
        let log = dir.join("log");
        let server = Command::new("openssl")
            .args([
                "s_server",
                "-HTTP",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                "cert.pem",
                "-key",
                "cert-key.pem",
            ])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = None;
        wait_until("openssl listens", Duration::from_secs(60), || {
            let said = fs::read_to_string(&log).unwrap();
            port = said
                .lines()
                .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.parse().ok());
            port.is_some()
        });
        TlsServer {
            server,
            port: port.expect("it is waited for"),
        }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.server.kill().expect("an unreaped child can be killed");
        self.server.wait().expect("the child is ours to wait for");
    }
}

#[tokio::test]
async fn a_redirect_out_of_tls_is_followed_only_where_a_digest_verifies() {
    let dir = tempdir().unwrap();
    if certificate(dir.path()).is_none() {
        return;
    }
    let plain = Faults::serve(|asked| Reply::file(b"hello", asked));
    let answer = format!(
        "HTTP/1.1 307 Elsewhere\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        plain.url("/y?X-Signature=hush")
    );
    fs::write(dir.path().join("x"), answer).unwrap();
    let tls = TlsServer::start(dir.path());
    let client = Client::new(Options {
        ca_certificates: vec![dir.path().join("ca.pem")],
        ..options()
    })
    .unwrap();
    let request = Request::get(format!("https://127.0.0.1:{}/x", tls.port).parse().unwrap());
    let error = client.read(&request, 100, &silent).await.unwrap_err();
    assert!(matches!(error, NetError::Downgrade { .. }), "{error:?}");
    assert!(
        error.hint().is_some() && !format!("{error} {error:?}").contains("hush"),
        "{error:?}"
    );
    let partial = dir.path().join("partial");
    let mut download = Download {
        request: request.clone(),
        what: "x",
        digest: None,
        size: None,
        partial: &partial,
    };
    let error = client.download(&download, &silent).await.unwrap_err();
    assert!(matches!(error, NetError::Downgrade { .. }), "{error:?}");
    assert_eq!(plain.asked().len(), 0, "nobody was asked in the clear");

    let digest = Digest::sha256(b"hello");
    download.digest = Some(&digest);
    client.download(&download, &silent).await.unwrap();
    assert_eq!(fs::read(&partial).unwrap(), b"hello");
    let verified = Request {
        content: Content::Verified,
        ..request
    };
    assert_eq!(client.read(&verified, 100, &silent).await.unwrap().body, "hello"[..]);
}

/// Each must be found nowhere.
const SECRETS: [&str; 6] = [
    "secret-password",
    "secret-token",
    "secret-identity",
    "secret-signature",
    "secret-proxy",
    "secret-query",
];

#[test]
fn no_secret_is_told_or_kept() {
    let image = image(&[&gz(b"x"), &gz(&[7; 50_000])]);
    let served = image.clone();
    let layer = image.layers[0].to_string();
    // It is the registry, the token server, the storage and the proxy at once.
    let server = Faults::serve(move |asked| {
        let target = asked.target.as_str();
        if target.contains("/token") {
            return Reply::new(200, json!({"token": "secret-token"}).to_string());
        }
        if target.contains("/storage/") {
            // Once not, so that there is something to say about it.
            return match asked.before % 3 {
                0 => Reply::new(503, "busy"),
                _ => Reply::file(&served.blobs[&layer], asked),
            };
        }
        if target.contains("/data?") {
            return Reply::file(b"data", asked);
        }
        if asked.header("authorization") != Some("Bearer secret-token") {
            let challenge = format!(
                r#"Bearer realm="http://{}/token?key=secret-query",service="s""#,
                asked.header("host").unwrap_or_default()
            );
            return Reply::new(401, "").with("WWW-Authenticate", challenge);
        }
        if target.ends_with(&layer) {
            let storage = format!("/storage/x?X-Amz-Signature=secret-signature&n={}", asked.before);
            return Reply::redirect(storage);
        }
        match target.contains("/private/") {
            true => Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
            false => served.answer(asked),
        }
    });
    let auth = BASE64_STANDARD.encode("ada:secret-password");
    for entry in [json!({"auth": auth}), json!({"auth": auth, "identitytoken": "secret-identity"})] {
        for proxied in [false, true] {
            let sandbox = Sandbox::new();
            let host = if proxied { "registry.invalid".to_owned() } else { server.host() };
            let config = json!({"network": {"backoff_ms": 1}, "registries": {host.as_str(): {"http": true}}});
            sandbox.config(&config.to_string());
            fs::create_dir(sandbox.home().join(".docker")).unwrap();
            let file = sandbox.home().join(".docker/config.json");
            fs::write(&file, json!({"auths": {host.as_str(): entry}}).to_string()).unwrap();
            let data = sandbox.write(
                "flow.yaml",
                format!(
                    "version: 1\nname: f\ndata: {{d: {{url: \"http://{host}/data?secret-query=1\"}}}}\n\
                     stages: {{a: {{image: none, run: 'true'}}}}\n"
                ),
            );
            let dvrun = || {
                let mut command = sandbox.dvrun();
                if proxied {
                    command.env("HTTP_PROXY", format!("http://ada:secret-proxy@{}", server.host()));
                }
                command
            };
            let mut all = Vec::new();
            let name = |repository: &str| format!("docker://{host}/{repository}/x:1");
            all.push(finish(dvrun().args(["pull", &name("lab"), "--format", "oci", "-o", "out"])).ok());
            all.push(finish(dvrun().args(["inspect", &name("private")])).exits(3));
            all.push(finish(dvrun().args(["tags", &name("private")])).exits(3));
            all.push(finish(dvrun().args(["whoami", &host])).ok());
            all.push(finish(dvrun().arg("fetch").arg(&data)).ok());
            for said in &all {
                clean(&format!("{}{}", said.stdout, said.stderr), "what was said");
            }
            fs::remove_file(file).unwrap();
            fs::remove_file(data).unwrap();
            for entry in WalkDir::new(sandbox.path()) {
                let entry = entry.unwrap();
                clean(&entry.path().display().to_string(), "a path");
                if entry.file_type().is_file() {
                    let bytes = fs::read(entry.path()).unwrap();
                    clean(&String::from_utf8_lossy(&bytes), &entry.path().display().to_string());
                }
            }
        }
    }
    let asked = server.asked();
    let targets = |part: &str| asked.iter().filter(|asked| asked.target.contains(part)).collect::<Vec<_>>();
    assert!(!targets("secret-signature").is_empty() && !targets("http://registry.invalid/").is_empty());
    // To the same server's storage the token may go; to the token server, never.
    assert!(
        targets("/token")
            .iter()
            .all(|asked| asked.header("authorization") != Some("Bearer secret-token"))
    );
}

#[track_caller]
fn clean(text: &str, place: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} is in {place}: {text}");
    }
    let auth = BASE64_STANDARD.encode("ada:secret-password");
    assert!(!text.contains(&auth), "the password is in {place}: {text}");
}
