//! The real `docker-registry` with token authentication: a small token server of ours signs, the registry checks.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use walkdir::WalkDir;

use super::login::keep_login;
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, finish, lane};

/// Makes the key and the certificate of the token server. `None` without openssl.
fn key(dir: &Path) -> Option<()> {
    let there = Command::new("openssl")
        .arg("version")
        .output()
        .is_ok_and(|said| said.status.success());
    lane("openssl", there).then(|| {
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tokens -keyout token-key.pem -out token.pem";
        finish(Command::new("openssl").current_dir(dir).args(words.split(' '))).ok();
    })
}

/// A JSON Web Token (RFC 7515) as the registry wants it: signed with RS256, its certificate in `x5c`.
fn sign(dir: &Path, number: usize, claims: &Value) -> String {
    let pem = fs::read_to_string(dir.join("token.pem")).unwrap();
    let certificate: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!(
        "{}.{}",
        part(&json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]})),
        part(claims)
    );
    let file = dir.join(format!("text-{number}"));
    fs::write(&file, &text).unwrap();
    let signed = Command::new("openssl")
        .args(["dgst", "-sha256", "-binary", "-sign"])
        .args([dir.join("token-key.pem"), file])
        .output()
        .unwrap();
    assert!(signed.status.success());
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signed.stdout))
}

/// Anybody may pull; ada may push, too, but for what is called `secret`.
fn answer(dir: &Path, asked: &Asked) -> Reply {
    let authorization = asked.header("authorization");
    let known = authorization == Some(&format!("Basic {}", BASE64_STANDARD.encode("ada:hush")));
    if authorization.is_some() && !known {
        return Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who is that?"}]}"#);
    }
    let url: reqwest::Url = format!("http://x{}", asked.target).parse().unwrap();
    let scopes = url.query_pairs().filter(|(key, _)| key == "scope");
    let access: Vec<Value> = scopes
        .map(|(_, scope)| {
            let (what, actions) = scope.rsplit_once(':').unwrap();
            let (kind, name) = what.split_once(':').unwrap();
            let may = |action: &&str| *action == "pull" || (known && !name.contains("secret"));
            let actions: Vec<&str> = actions.split(',').filter(may).collect();
            json!({"type": kind, "name": name, "actions": actions})
        })
        .collect();
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "iss": "tests", "sub": "ada", "aud": "lab", "exp": now + 600, "nbf": now - 60, "iat": now,
        "jti": asked.before.to_string(), "access": access,
    });
    let token = sign(dir, asked.before, &claims);
    Reply::new(200, json!({"token": token, "expires_in": 600}).to_string())
}

#[test]
fn tokens_for_pulls_pushes_and_what_is_taken_over() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path().to_owned();
    if key(&dir).is_none() {
        return;
    }
    let place = dir.clone();
    let tokens = Faults::serve(move |asked| answer(&place, asked));
    let auth = format!(
        "auth: {{token: {{realm: '{}', service: lab, issuer: tests, rootcertbundle: '{}'}}}}",
        tokens.url("/token"),
        dir.join("token.pem").display()
    );
    let Some(registry) = Registry::start_with("", &auth) else { return };
    let layers = [gz(b"lower"), gz(&[7; 300_000])];
    image(&layers.each_ref().map(Vec::as_slice)).write(&sandbox.work().join("layout"), "x");
    let name = |repository: &str| format!("docker://{}/lab/{repository}:1", registry.host());
    let push = |from: &str, to: &str| finish(sandbox.dvrun().args(["push", from, to]));
    push("oci:layout:x", &name("x"))
        .exits(3)
        .complains("UNAUTHORIZED")
        .complains("dvrun login");
    keep_login(&sandbox, &registry.host());
    push("oci:layout:x", &name("x")).ok();
    push("oci:layout:x", &name("secret")).exits(3).complains(&registry.host());
    // Anonymous, from another's home.
    let other = Sandbox::new();
    finish(other.dvrun().args(["pull", &name("x"), "--format", "oci", "-o", "out"])).ok();
    finish(other.dvrun().args(["tags", &name("x")])).ok().says("1\n");

    // A registry gives to one repository what is in another only to whose token is for both.
    let fresh = Sandbox::new();
    fs::create_dir(fresh.home().join(".docker")).unwrap();
    let login = sandbox.home().join(".docker/config.json");
    fs::copy(login, fresh.home().join(".docker/config.json")).unwrap();
    let copied = finish(fresh.dvrun().args(["push", &name("x"), &name("y")])).ok();
    assert!(!copied.stderr.contains("done"), "nothing was sent: {copied}");
    let blobs = WalkDir::new(fresh.cache().join("v1/blobs")).into_iter().flatten();
    let large = blobs.filter(|entry| {
        entry
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() == layers[1].len() as u64)
    });
    assert_eq!(large.count(), 0, "nothing was fetched");
    finish(other.dvrun().args(["pull", &name("y"), "--format", "oci", "-o", "y"])).ok();
    let both = tokens.targets("scope=repository%3Alab%2Fx%3Apull");
    // It names the actions in whatever order.
    let pushes = |target: &String| target.contains("lab%2Fy%3A") && target.contains("push");
    assert!(both.iter().any(pushes), "{both:#?}");
    // What is deleted is not there, and its tag is said not to be.
    finish(Command::new("skopeo").args(["delete", "--tls-verify=false", "--creds=ada:hush", &name("y")])).ok();
    finish(other.dvrun().args(["inspect", &name("y")]))
        .exits(3)
        .complains("MANIFEST_UNKNOWN");
}
