//! What is said while something is fetched.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

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

#[test]
fn a_terminal_shows_a_line_for_each_layer_and_one_for_all() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let mut dice = fastrand::Rng::with_seed(1);
    let mut layer = |length: usize| {
        let mut bytes = vec![0; length];
        dice.fill(&mut bytes);
        gz(&bytes)
    };
    let image = image(&[&layer(2 << 20), &layer(1 << 20)]);
    image.write(&sandbox.work().join("layout"), "x");
    registry.push_oci(&sandbox.work().join("layout"), "x", "lab/x:1");
    let valve = Valve::slow(registry.port(), RATE);
    let name = format!("docker://127.0.0.1:{}/lab/x:1", valve.port());
    for columns in [80, 60] {
        let size = nix::pty::Winsize {
            ws_row: 30,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(&size, None).unwrap();
        let sandbox = Sandbox::new();
        let mut child = sandbox
            .dvrun()
            .env("TERM", "xterm-256color")
            .args(["pull", &name, "--format", "oci", "-o", "out"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(pty.slave))
            .spawn()
            .unwrap();
        let mut terminal = File::from(pty.master);
        let mut screen = Screen::new(usize::from(columns));
        let mut frames = Vec::new();
        let mut bytes = [0; 4096];
        // The last one who holds the terminal leaves: EIO.
        while let Ok(read @ 1..) = terminal.read(&mut bytes) {
            for byte in &bytes[..read] {
                screen.take(*byte);
                // A whole picture ends in its last line.
                if screen.row_text(screen.row).trim_start().starts_with("total") && *byte == b'\x1b' {
                    frames.push(screen.text());
                }
            }
        }
        assert!(child.wait().unwrap().success());
        let short: Vec<&str> = image.layers.iter().map(dvrun::oci::Digest::short).collect();
        let has = |frame: &&String| {
            let lines: Vec<&str> = frame.lines().map(str::trim).collect();
            let line = |name: &str| lines.iter().find(|line| line.starts_with(name) && line.contains("MiB")).copied();
            let bars = short.iter().all(|name| line(name).is_some());
            bars && line("total").is_some_and(|total| total.contains("/s") && total.contains("left"))
        };
        let whole = frames.iter().find(has);
        assert!(whole.is_some(), "{columns} columns: {:#?}", frames.last());
        for frame in &frames {
            let totals = frame.lines().filter(|line| line.trim().starts_with("total")).count();
            assert_eq!(totals, 1, "one line is for all:\n{frame}");
        }
        // What is left when all is done: a line for each, and no bar.
        let end = screen.text();
        for name in &short {
            assert!(end.contains(&format!("{name}: done, ")), "{end}");
        }
        assert!(!end.contains("total") && !end.contains("left"), "{end}");
    }
}

/// What a person sees, of a terminal that knows the little that progress bars need.
struct Screen {
    columns: usize,
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// An escape sequence that has begun, or a character of several bytes.
    pending: Vec<u8>,
}

impl Screen {
    fn new(columns: usize) -> Screen {
        Screen {
            columns,
            lines: vec![Vec::new()],
            row: 0,
            column: 0,
            pending: Vec::new(),
        }
    }

    fn text(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|line| line.iter().collect()).collect();
        lines.join("\n")
    }

    fn row_text(&self, row: usize) -> String {
        self.lines[row].iter().collect()
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == self.lines.len() {
            self.lines.push(Vec::new());
        }
    }

    fn take(&mut self, byte: u8) {
        if !self.pending.is_empty() || byte >= 0x80 || byte == 0x1b {
            self.pending.push(byte);
            self.pending();
            return;
        }
        match byte {
            b'\r' => self.column = 0,
            b'\n' => self.down(),
            byte => self.put(char::from(byte)),
        }
    }

    fn put(&mut self, c: char) {
        if self.column == self.columns {
            self.column = 0;
            self.down();
        }
        let line = &mut self.lines[self.row];
        line.resize(line.len().max(self.column + 1), ' ');
        line[self.column] = c;
        self.column += 1;
    }

    fn pending(&mut self) {
        if self.pending[0] != 0x1b {
            let c = std::str::from_utf8(&self.pending).ok().and_then(|text| text.chars().next());
            if let Some(c) = c {
                self.pending.clear();
                self.put(c);
            }
            return;
        }
        let Some(last) = self
            .pending
            .get(2..)
            .and_then(|rest| rest.last())
            .copied()
            .filter(u8::is_ascii_alphabetic)
        else {
            return;
        };
        let parameters = String::from_utf8_lossy(&self.pending[2..self.pending.len() - 1]).into_owned();
        self.pending.clear();
        let number: usize = parameters.parse().unwrap_or(1);
        match last {
            b'A' => self.row = self.row.saturating_sub(number),
            b'B' => (0..number).for_each(|_| self.down()),
            b'C' => self.column = (self.column + number).min(self.columns),
            b'D' => self.column = self.column.saturating_sub(number),
            b'K' if parameters == "2" => self.lines[self.row].clear(),
            b'K' => {
                let column = self.column;
                self.lines[self.row].truncate(column);
            }
            // Colours, and whether the cursor is seen.
            b'm' | b'h' | b'l' => {}
            b'J' => {
                let (row, column) = (self.row, self.column);
                self.lines.truncate(row + 1);
                self.lines[row].truncate(column);
            }
            other => panic!("an escape that this screen does not know: {:?} {parameters}", char::from(other)),
        }
    }
}
