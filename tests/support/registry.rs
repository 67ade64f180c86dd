//! A real registry: Debian's `docker-registry` on a free port of loopback, as whoever runs the tests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use super::lanes::succeeds;
use super::{finish, lane};

/// The access log's name in the storage folder.
const ACCESS: &str = "access.log";

/// Gone, with all that was pushed to it, when dropped.
pub struct Registry {
    server: Child,
    port: u16,
    storage: TempDir,
}

impl Registry {
    /// `None` where docker-registry or skopeo is not installed.
    pub fn start() -> Option<Registry> {
        Registry::start_with("", "")
    }

    /// With more settings in the section `http` (`tls: {…}`), and beside it.
    pub fn start_with(http: &str, rest: &str) -> Option<Registry> {
        let there = |program: &str| succeeds(Command::new(program).arg("--version"));
        if !lane(
            "registry: docker-registry or skopeo is not installed",
            there("docker-registry") && there("skopeo"),
        ) {
            return None;
        }
        let storage = tempfile::Builder::new()
            .prefix("dvrun-registry-")
            .tempdir()
            .expect("the temporary folder is writable");
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: tests, {http}}}\n{rest}\n",
            storage.path().join("registry").display()
        );
        fs::write(&config, text).expect("the folder was just made");
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create(storage.path().join(ACCESS)).expect("the folder was just made"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("it answered --version");
        // It picks the port itself, so that no two tests meet, and says which one in its log.
        let mut log = BufReader::new(server.stderr.take().expect("it is piped")).lines();
        let mut said = String::new();
        let port = loop {
            let Some(line) = log.next() else {
                panic!("docker-registry ended at once:\n{said}")
            };
            let line = line.expect("its log is text");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().expect("a port is a number");
            }
            said += &line;
            said.push('\n');
        };
        // The rest of the log is read, or the server would block on a full pipe.
        thread::spawn(move || log.count());
        Some(Registry { server, port, storage })
    }

    /// A line for each request so far, in Apache's "combined" format; the last ones may not be written yet.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.storage.path().join(ACCESS)).expect("it was made before the registry")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`, as it stands in a reference.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes `tag` of an OCI layout as `name` (`lab/genomics:1.0`).
    #[track_caller]
    pub fn push_oci(&self, layout: &Path, tag: &str, name: &str) {
        finish(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--dest-tls-verify=false", "--insecure-policy"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{}/{name}", self.host())),
        )
        .ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.kill().expect("an unreaped child can be killed");
        self.server.wait().expect("the child is ours to wait for");
    }
}

#[test]
fn what_is_pushed_is_served() {
    let Some(registry) = Registry::start() else { return };
    registry.push_oci(&super::checkout().join("workflows/quickstart/image"), "1.0", "lab/toolbox:1.0");
    let reference = format!("docker://{}/lab/toolbox:1.0", registry.host());
    let inspected = finish(Command::new("skopeo").args(["inspect", "--tls-verify=false", &reference])).ok();
    assert_eq!(inspected.json()["Labels"]["org.opencontainers.image.title"], "quickstart");
}
