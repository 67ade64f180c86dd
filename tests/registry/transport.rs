//! How bytes travel: certificates of one's own, proxies, HTTP/2, bounds on connections and on patience.

use std::collections::HashSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dvrun::net::{Client, NetError, Options, Request, silent};
use nix::sys::socket::{Backlog, listen};
use tempfile::tempdir;

use super::secured::{certificate, signed};
use super::{fetch, options};
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, finish, wait_until};

/// A registry with TLS that lets in only who has a certificate of its authority, with `lab/x:1` in it. The folder `certs` beside
/// the certificates is as `certs.d/HOST` has to be.
fn guarded(dir: &Path) -> Option<Registry> {
    certificate(dir)?;
    signed(dir, "client", "extendedKeyUsage=clientAuth");
    let path = |name: &str| dir.join(name).display().to_string();
    let tls = format!(
        "tls: {{certificate: '{}', key: '{}', clientcas: ['{}']}}",
        path("cert.pem"),
        path("cert-key.pem"),
        path("ca.pem")
    );
    let registry = Registry::start_with(&tls, "")?;
    let certs = dir.join("certs");
    fs::create_dir(&certs).unwrap();
    for (from, to) in [
        ("ca.pem", "ca.crt"),
        ("client.pem", "client.cert"),
        ("client-key.pem", "client.key"),
    ] {
        fs::copy(dir.join(from), certs.join(to)).unwrap();
    }
    image(&[&gz(b"x"), &gz(b"y")]).write(&dir.join("layout"), "x");
    finish(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-cert-dir"])
            .arg(&certs)
            .arg(format!("oci:{}:x", dir.join("layout").display()))
            .arg(format!("docker://{}/lab/x:1", registry.host())),
    )
    .ok();
    Some(registry)
}

#[test]
fn a_certificate_of_ones_own_is_shown_where_it_is_asked_for() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path().join("tls");
    fs::create_dir(&dir).unwrap();
    let Some(registry) = guarded(&dir) else { return };
    let (host, name) = (registry.host(), format!("docker://{}/lab/x:1", registry.host()));
    let inspect = || finish(sandbox.dvrun().args(["inspect", &name]));
    // Nobody trusts anybody.
    inspect().exits(3).complains("certs.d").complains("ca_certificates");
    // The server is trusted; it wants to know us.
    let authority = dir.join("ca.pem").display().to_string();
    let quick = "network: {backoff_ms: 1}";
    sandbox.config(&format!(
        "{quick}\nregistries: {{\"{host}\": {{ca_certificates: ['{authority}']}}}}\n"
    ));
    inspect().exits(3).complains("client_certificate");
    // By the configuration, with paths from its own folder; by folders, as Podman and Docker have them.
    sandbox.config(&format!(
        "registries: {{\"{host}\": {{ca_certificates: [tls/ca.pem], client_certificate: tls/client.pem, client_key: tls/client-key.pem}}}}\n"
    ));
    inspect().ok().says("/bin/true");
    sandbox.config("{}\n");
    for folder in [".config/containers/certs.d", ".config/docker/certs.d"] {
        let own = sandbox.home().join(folder).join(&host);
        fs::create_dir_all(&own).unwrap();
        for file in ["ca.crt", "client.cert", "client.key"] {
            fs::copy(dir.join("certs").join(file), own.join(file)).unwrap();
        }
        inspect().ok();
        let name = format!("docker://{host}/lab/pushed:1");
        finish(
            sandbox
                .dvrun()
                .args(["push", &format!("oci:{}:x", dir.join("layout").display()), &name]),
        )
        .ok();
        fs::remove_file(own.join("client.key")).unwrap();
        inspect().exits(3).complains("client.cert").complains("client.key");
        fs::remove_dir_all(own).unwrap();
    }
    inspect().exits(3);
}

#[test]
fn a_mirror_that_is_no_url_is_told_with_its_place() {
    let sandbox = Sandbox::new();
    for (config, place) in [
        (
            "registries:\n  docker.io:\n    mirrors: [\"http://10.0.0.1:5000\", mirror.example]\n",
            "line 3",
        ),
        ("tag_ttl: 1h\nmirrors:\n  \"gs://bucket/\": mirror.example/bucket\n", "line 3"),
    ] {
        sandbox.config(config);
        let refused = finish(sandbox.dvrun().args(["image", "ls"])).exits(2);
        refused.complains("config.yaml").complains(place).complains("URL");
    }
    // One place for each setting.
    for name in ["registries", "mirrors"] {
        sandbox.config(&format!("network:\n  {name}: {{}}\n"));
        let refused = finish(sandbox.dvrun().args(["image", "ls"])).exits(2);
        refused.complains("config.yaml").complains(name);
    }
}

#[tokio::test]
async fn http_2_is_spoken_where_the_server_can() {
    let dir = tempdir().unwrap();
    let Some(registry) = guarded(dir.path()) else { return };
    let folders = dir.path().join("certs.d");
    fs::create_dir(&folders).unwrap();
    fs::rename(dir.path().join("certs"), folders.join(registry.host())).unwrap();
    let options = Options {
        certificate_folders: vec![folders],
        ..options()
    };
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/lab/x:1", registry.host());
    fetch(&Client::new(options).unwrap(), cache.path(), &name).await.unwrap();
    // A manifest, a configuration, two layers: all of them.
    let ours = || {
        let log = registry.access_log();
        log.lines()
            .filter(|line| line.contains("dvrun/"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    wait_until("the registry has written its log", Duration::from_secs(60), || ours().len() >= 4);
    let ours = ours();
    assert!(ours.iter().all(|line| line.contains(" HTTP/2.0\"")), "{ours:#?}");
}

/// Serves `image` and holds each blob back until `together` are asked for at a time, or all are; tells how many were at most.
#[tokio::test]
async fn blobs_come_at_once_as_many_as_there_may_be_connections() {
    let bytes: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n; 1000]).collect();
    let image = image(&bytes.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let layers: HashSet<String> = image.layers.iter().map(ToString::to_string).collect();
    let state = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let counted = Arc::clone(&state);
    let server = Faults::serve(move |asked| {
        let is_layer = asked.target.rsplit('/').next().is_some_and(|name| layers.contains(name));
        if is_layer {
            let (state, changed) = &*counted;
            let mut state = state.lock().unwrap();
            state.0 += 1;
            state.1 = state.1.max(state.0);
            changed.notify_all();
            // The first three must be together before one of them gets its answer.
            state = changed.wait_while(state, |state| state.1 < 3).unwrap();
            state.0 -= 1;
        }
        image.answer(asked)
    });
    let client = Client::new(Options {
        connections: 3,
        read_timeout: 60,
        ..options()
    })
    .unwrap();
    // Two pulls share the client, and with it the bound.
    let (one, other) = (tempdir().unwrap(), tempdir().unwrap());
    let name = format!("docker://{}/lab/x:1", server.host());
    let (first, second) = tokio::join!(fetch(&client, one.path(), &name), fetch(&client, other.path(), &name));
    assert_eq!((first.unwrap().1.layers.len(), second.unwrap().1.layers.len()), (8, 8));
    assert_eq!(state.0.lock().unwrap().1, 3, "three at once, and no more");
}

#[tokio::test]
async fn who_does_not_answer_the_door_is_given_up() {
    // Its queue is full, and nobody is let in: the next one's knocking is not heard.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let mut inside = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        inside.push(stream);
        assert!(inside.len() < 100, "the queue never fills");
    }
    let impatient = Client::new(Options {
        connect_timeout: 1,
        read_timeout: 3600,
        attempts: 1,
        ..options()
    })
    .unwrap();
    let request = Request::get(format!("http://127.0.0.1:{port}/x").parse().unwrap());
    let error = impatient.read(&request, 10, &silent).await.unwrap_err();
    assert!(
        matches!(&error, NetError::Transport { source, .. } if source.is_timeout() || source.is_connect()),
        "{error:?}"
    );
}

#[test]
fn the_usual_variables_name_proxies_and_exceptions() {
    let sandbox = Sandbox::new();
    let proxy = Faults::serve(|_| Reply::new(502, ""));
    sandbox.config("network: {backoff_ms: 1, attempts: 1}\n");
    let inspect = |variables: &[(&str, &str)]| {
        let before = proxy.asked().len();
        let mut command = sandbox.dvrun();
        command.args(["inspect", "docker://registry.invalid/lab/x:1"]);
        finish(command.envs(variables.iter().copied())).exits(3);
        proxy.asked()[before..].to_vec()
    };
    let url = proxy.url("");
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let asked = inspect(&[(name, &url)]);
        let first: &Asked = asked.first().expect("it went to the proxy");
        assert_eq!(
            (first.method.as_str(), first.target.as_str()),
            ("CONNECT", "registry.invalid:443"),
            "{name}"
        );
        for exception in ["NO_PROXY", "no_proxy"] {
            for hosts in ["registry.invalid", ".invalid", "a.example, .invalid", "*"] {
                assert_eq!(inspect(&[(name, &url), (exception, hosts)]).len(), 0, "{exception}={hosts}");
            }
            assert!(!inspect(&[(name, &url), (exception, "other.invalid")]).is_empty());
        }
    }
    // Of the other scheme.
    assert_eq!(inspect(&[("HTTP_PROXY", &url)]).len(), 0);
}
