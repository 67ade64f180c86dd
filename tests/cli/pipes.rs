//! Readers that go away, and disks that are full.

use std::fs::File;
use std::process::Stdio;

use crate::support::{Sandbox, finish};

const FILE: &str = "version: 1\nname: x\nstages:\n  s: {image: none, array: 3, run: 'echo x > ${{ array.index }}.txt', outputs: ['${{ array.index }}.txt']}\n";

/// The write end of a pipe that nobody reads.
fn nobody() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_wants_no_more_is_no_failure() {
    let sandbox = Sandbox::new();
    sandbox.write("x.yaml", FILE);
    for arguments in [
        &["plan", "x.yaml", "--json"][..],
        &["validate", "x.yaml"],
        &["completions", "bash"],
        &["man"],
    ] {
        let status = sandbox.dvrun().args(arguments).stdout(nobody()).stderr(Stdio::piped()).output();
        let output = status.expect("the binary starts");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_run_goes_on_when_nobody_listens() {
    let sandbox = Sandbox::new();
    sandbox.write("x.yaml", FILE);
    let status = sandbox.dvrun().args(["run", "x.yaml"]).stdout(nobody()).stderr(nobody()).status();
    assert_eq!(status.expect("the binary starts").code(), Some(0));
    assert_eq!(sandbox.read("2.txt"), "x\n");
    finish(sandbox.dvrun().arg("status")).ok().says("ok (3 tasks)");
}

#[test]
fn data_that_cannot_be_written_is_a_failure() {
    let sandbox = Sandbox::new();
    sandbox.write("x.yaml", FILE);
    for arguments in [&["plan", "x.yaml"][..], &["plan", "x.yaml", "--json"], &["image", "df"]] {
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        let output = sandbox.dvrun().args(arguments).stdout(full).stderr(Stdio::piped()).output();
        let output = output.expect("the binary starts");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "error: cannot write to standard output: No space left on device (os error 28)\n"
        );
    }
}
