//! A terminal of the container's own, for a person.

use std::io::{BufRead, BufReader, Write};

use dvrun::runtime::{Signal, Status, size_of, spawn_on_terminal};

use super::fixture::*;
use crate::support::binary;

#[test]
fn a_program_on_a_terminal() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let script = "trap 'echo resized; stty size' WINCH
        trap 'echo interrupted; exit 4' INT
        tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo three
        read -r line; echo \"got $line\"
        while :; do sleep 1000 & wait; done";
    let (mut running, mut terminal) = spawn_on_terminal(&binary(), &fixture.shell(script), (31, 97)).unwrap();

    // The caller's own terminal, played by another one.
    let size = nix::pty::Winsize {
        ws_row: 40,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let person = nix::pty::openpty(&size, None).unwrap();
    nix::sys::termios::tcsetattr(&person.slave, nix::sys::termios::SetArg::TCSANOW, &{
        let mut raw = nix::sys::termios::tcgetattr(&person.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        raw
    })
    .unwrap();
    let keys = std::fs::File::from(person.master);
    let (resized, resize) = std::io::pipe().unwrap();
    let (shown, mut show) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| {
            let ended = terminal.relay(&person.slave, &mut show, resized);
            drop(show);
            ended
        });
        // Closed when a check fails: then the relay ends, too.
        let (mut keys, mut resize) = (keys, resize);
        let mut lines = BufReader::new(shown).lines().map(|line| line.unwrap().trim_end().to_owned());
        let mut expect = |expected: &str| assert_eq!(lines.next().as_deref(), Some(expected));
        expect("/dev/pts/0");
        expect("31 97");
        expect("three");
        keys.write_all(b"hello\r").unwrap();
        expect("hello");
        expect("got hello");
        assert_eq!(size_of(&person.slave).unwrap(), (40, 120));
        resize.write_all(b"x").unwrap();
        expect("resized");
        expect("40 120");
        keys.write_all(b"\x03").unwrap();
        expect("^Cinterrupted");
        relay.join().unwrap().unwrap();
        assert_eq!(lines.next(), None);
    });
    assert_eq!(running.wait().unwrap().status, Status::Exited(4));
}

#[test]
fn a_terminal_that_goes_away_hangs_up() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let (mut running, terminal) = spawn_on_terminal(&binary(), &fixture.container(&["cat"]), (24, 80)).unwrap();
    drop(terminal);
    assert_eq!(running.wait().unwrap().status, Status::Signaled(Signal::SIGHUP as i32));
}
