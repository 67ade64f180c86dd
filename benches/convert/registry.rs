//! A real registry on loopback, with the image in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::image::Image;

/// Ends when dropped; what was pushed stays for the next time.
pub struct Registry {
    server: Child,
    pub port: u16,
}

/// How a registry is spoken to.
#[derive(Clone, Copy, PartialEq)]
pub enum Scheme {
    Http,
    /// With a certificate of its own making.
    Https,
}

impl Registry {
    pub fn start(folder: &Path, image: &Image, scheme: Scheme) -> Registry {
        let (config, tls) = match scheme {
            Scheme::Http => (folder.join("registry.yml"), String::new()),
            Scheme::Https => (folder.join("registry-tls.yml"), certificate(folder)),
        };
        let name = image.layout.file_name().and_then(|name| name.to_str()).expect("chosen here");
        let storage = folder.join(format!("registry-{name}"));
        let text = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:0', secret: bench{tls}}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("target is writable");
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let mut log = BufReader::new(server.stderr.take().expect("it is piped")).lines();
        let port = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on 127.0.0.1:")?;
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            })
            .expect("docker-registry says where it listens");
        std::thread::spawn(move || log.count());
        let registry = Registry { server, port };
        if !storage.exists() {
            let pushed = Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--dest-tls-verify=false",
                    "--insecure-policy",
                    "--preserve-digests",
                ])
                .arg(format!("oci:{}:1", image.layout.display()))
                .arg(format!("docker://127.0.0.1:{port}/bench/image:1"))
                .status()
                .expect("skopeo is installed");
            assert!(pushed.success(), "skopeo could not push");
        }
        registry
    }
}

/// Makes one; gives what the registry's configuration says of it.
fn certificate(folder: &Path) -> String {
    let [certificate, key] = ["registry.crt", "registry.key"].map(|name| folder.join(name));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=127.0.0.1",
        ])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(made.success(), "openssl could not make a certificate");
    format!(", tls: {{certificate: '{}', key: '{}'}}", certificate.display(), key.display())
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait()) {
            eprintln!("docker-registry could not be ended: {error}");
        }
    }
}
