//! SIGKILL, again and again: what came before it counts.

use std::fs;

use crate::support::image::{gz, image};
use crate::support::{Registry, Running, Sandbox, Valve, finish};

/// Bytes a second: fast enough for a test, and slow enough that little is on its way at any moment.
const RATE: u64 = 16 << 20;

#[test]
fn ten_kills_at_random_cost_little() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let mut dice = fastrand::Rng::new();
    let seed = dice.get_seed();
    let mut layer = |length: usize| {
        let mut bytes = vec![0; length];
        dice.fill(&mut bytes);
        gz(&bytes)
    };
    let layers = [layer(24 << 20), layer(3 << 20), layer(1 << 10)];
    let image = image(&layers.each_ref().map(Vec::as_slice));
    let layout = sandbox.path().join("layout");
    image.write(&layout, "x");
    registry.push_oci(&layout, "x", "lab/x:1");
    let whole = image.blobs.values().map(Vec::len).sum::<usize>() as u64;

    let valve = Valve::slow(registry.port(), RATE);
    sandbox.config("network: {part_bytes: 2097152}\n");
    let name = format!("docker://127.0.0.1:{}/lab/x:1", valve.port());
    let pull = || {
        let mut command = sandbox.dvrun();
        command.args(["pull", &name, "--format", "oci", "-o", "out"]);
        command
    };
    let mut moments: Vec<u64> = (0..10).map(|_| dice.u64(1..whole * 95 / 100)).collect();
    moments.sort_unstable();
    for moment in &moments {
        let what = format!("{moment} of {whole} bytes came (seed {seed})");
        Running::start(&mut pull()).kill_when(&what, || valve.passed() >= *moment);
    }
    assert!(!sandbox.work().join("out").exists(), "whole or not at all");
    finish(&mut pull()).ok();
    let passed = valve.passed();
    assert!(passed * 10 <= whole * 12, "{passed} bytes for {whole}, seed {seed}");
    for (digest, bytes) in &image.blobs {
        let path = sandbox.work().join("out/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        assert!(fs::read(path).unwrap() == *bytes, "{digest}");
    }
    let left = fs::read_dir(sandbox.cache().join("v1/partial")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of the parts");
}
