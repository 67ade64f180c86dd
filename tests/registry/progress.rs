//! What is said while something is fetched.

use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, Valve, finish};

/// Bytes a second, of an image that takes longer than it takes to say something.
const RATE: u64 = 1 << 20;

#[test]
fn without_a_terminal_a_line_comes_now_and_then() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let mut bytes = vec![0; 7 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    let image = image(&[&gz(&bytes), &gz(b"x")]);
    image.write(&sandbox.work().join("layout"), "x");
    registry.push_oci(&sandbox.work().join("layout"), "x", "lab/x:1");
    let valve = Valve::slow(registry.port(), RATE);
    let name = format!("docker://127.0.0.1:{}/lab/x:1", valve.port());
    let said = finish(sandbox.dvrun().args(["pull", &name, "--format", "oci", "-o", "out"])).ok();
    let line = said
        .stderr
        .lines()
        .find(|line| line.contains("/s, "))
        .unwrap_or_else(|| panic!("{said}"));
    for part in ["2 of 3 done: ", " of 7.", " left"] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!said.stderr.contains('\u{1b}') && !said.stderr.contains('\r'), "{said}");
    for digest in &image.layers {
        assert!(said.stderr.contains(&format!("{}: done", digest.short())), "{said}");
    }

    let other = Sandbox::new();
    let quiet = finish(other.dvrun().args([
        "--quiet",
        "pull",
        &format!("docker://{}/lab/x:1", registry.host()),
        "--format",
        "oci",
        "-o",
        "out",
    ]))
    .ok();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}
