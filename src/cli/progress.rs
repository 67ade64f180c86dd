//! Downloads as a user sees them: a bar for each and one for all on a terminal, a line every few seconds elsewhere,
//! nothing with `--quiet`.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::net::Event;
use crate::runtime::size_of;

/// Between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);

/// Shows [`Event`]s; shared by all downloads of a command.
pub struct Downloads {
    quiet: bool,
    /// `None`: there is no terminal.
    bars: Option<MultiProgress>,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    going: HashMap<String, Going>,
    sum: Sum,
    /// Of all downloads, on a terminal.
    bar: Option<ProgressBar>,
    /// When the last line about all was written, and how much had come by then.
    last: Option<(Instant, u64)>,
}

struct Going {
    bar: Option<ProgressBar>,
    done: u64,
}

/// What the downloads of a command amount to, as far as they have begun.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    /// Downloads that have begun, and how many of them have ended.
    begun: usize,
    ended: usize,
    /// Bytes that are there.
    done: u64,
    /// Bytes that they are long; `None` where one does not know.
    total: Option<u64>,
    /// Bytes that have come over the network.
    moved: u64,
}

impl Sum {
    fn begin(&mut self, done: u64, total: Option<u64>) {
        let before = if self.begun == 0 { Some(0) } else { self.total };
        self.total = before.zip(total).map(|(before, total)| before + total);
        self.begun += 1;
        self.done += done;
    }

    fn advance(&mut self, from: u64, to: u64) {
        self.done = (self.done + to).saturating_sub(from);
        self.moved += to.saturating_sub(from);
    }

    /// `rate` is in bytes a second.
    fn line(&self, rate: u64) -> String {
        let mut text = format!("{} of {} done: {}", self.ended, self.begun, HumanBytes(self.done));
        if let Some(total) = self.total {
            text += &format!(" of {}", HumanBytes(total));
        }
        text += &format!(", {}/s", HumanBytes(rate));
        if let Some(left) = self.total.and_then(|total| total.saturating_sub(self.done).checked_div(rate)) {
            text += &format!(", {} left", time(left));
        }
        text
    }
}

/// Seconds, for people.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

impl Downloads {
    pub fn new(quiet: bool) -> Downloads {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Downloads {
            quiet,
            bars: terminal.then(MultiProgress::new),
            shown: Mutex::default(),
        }
    }

    /// Receives one event.
    pub fn show(&self, event: Event<'_>) {
        if self.quiet {
            return;
        }
        let Ok(mut shown) = self.shown.lock() else { return };
        let shown = &mut *shown;
        match event {
            Event::Started { what, done, total } => self.started(shown, what, done, total),
            Event::Advanced { what, done } => {
                if let Some(going) = shown.going.get_mut(what) {
                    shown.sum.advance(going.done, done);
                    going.done = done;
                    if let Some(bar) = &going.bar {
                        bar.set_position(done);
                    }
                }
                match &shown.bar {
                    Some(bar) => bar.set_position(shown.sum.done),
                    None => self.now_and_then(shown),
                }
            }
            Event::Finished { what, size } => {
                if let Some(going) = shown.going.remove(what) {
                    shown.sum.advance(going.done, size);
                    shown.sum.ended += 1;
                    if let Some(bar) = going.bar {
                        bar.finish_and_clear();
                    }
                }
                if shown.going.is_empty()
                    && let Some(bar) = shown.bar.take()
                {
                    bar.finish_and_clear();
                }
                self.line(&format!("{what}: done, {}", HumanBytes(size)));
            }
            Event::Present { .. } => {}
            Event::Converting { what } => self.line(&format!("{what}: converting")),
            Event::Waiting { what } => self.line(&format!("{what}: another process is at it; waiting")),
            Event::Retrying { what, why, after } => {
                self.line(&format!("{what}: {why}; trying again in {:.1} s", after.as_secs_f64()));
            }
            Event::Note { what, text } => self.line(&format!("{what}: {text}")),
        }
    }

    fn started(&self, shown: &mut Shown, what: &str, done: u64, total: Option<u64>) {
        // A download that begins anew, with other credentials or from another server, is the same one.
        if let Some(going) = shown.going.get_mut(what) {
            shown.sum.advance(going.done, done);
            going.done = done;
            return;
        }
        shown.sum.begin(done, total);
        shown.last.get_or_insert((Instant::now(), shown.sum.moved));
        let own = self.bars.as_ref().map(|bars| {
            let new = shown.bar.is_none();
            let sum = shown.bar.get_or_insert_with(|| bars.add(bar("total", 0, Some(0))));
            match shown.sum.total {
                Some(total) => sum.set_length(total),
                None => sum.unset_length(),
            }
            if new || done > 0 {
                // What is there already says nothing about how fast the rest will come.
                sum.set_position(shown.sum.done);
                sum.reset_eta();
            }
            bars.insert_before(sum, bar(what, done, total))
        });
        shown.going.insert(what.to_owned(), Going { bar: own, done });
    }

    /// Where there is no terminal.
    fn now_and_then(&self, shown: &mut Shown) {
        let Some((last, moved)) = shown.last else { return };
        let passed = last.elapsed();
        if passed < INTERVAL {
            return;
        }
        let rate = (shown.sum.moved - moved) as f64 / passed.as_secs_f64();
        shown.last = Some((Instant::now(), shown.sum.moved));
        self.line(&shown.sum.line(rate as u64));
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // Above the bars, not through them.
            Some(bars) => bars.println(format!("  {text}")).unwrap_or_default(),
            // Nobody is left to tell that standard error is gone.
            None => writeln!(std::io::stderr(), "  {text}").unwrap_or_default(),
        }
    }
}

/// With the time left in sight on 80 columns, and on 60, where there is no room for a bar.
const WIDE: &str = "  {msg:16!} [{wide_bar}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} left";
const NARROW: &str = "  {msg:12!} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} left";
const WIDE_COLUMNS: u16 = 76;

fn bar(what: &str, done: u64, total: Option<u64>) -> ProgressBar {
    let (bar, style) = match total {
        Some(total) => {
            let columns = size_of(std::io::stderr()).map_or(WIDE_COLUMNS, |(_, columns)| columns);
            let style = if columns < WIDE_COLUMNS { NARROW } else { WIDE };
            (ProgressBar::new(total), style)
        }
        None => (ProgressBar::new_spinner(), "  {msg:16!} {spinner} {bytes:>10} {bytes_per_sec:>12}"),
    };
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(what.to_owned()).with_position(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_add_up() {
        let mut sum = Sum::default();
        sum.begin(1 << 20, Some(10 << 20));
        sum.begin(0, Some(2 << 20));
        sum.advance(1 << 20, 4 << 20);
        assert_eq!(sum.line(1 << 20), "0 of 2 done: 4.00 MiB of 12.00 MiB, 1.00 MiB/s, 8 s left");
        assert_eq!(sum.moved, 3 << 20, "what was there was not moved");
        // A server that cannot go on where it was.
        sum.advance(4 << 20, 0);
        assert_eq!(sum.done, 0);
        assert_eq!(sum.line(0), "0 of 2 done: 0 B of 12.00 MiB, 0 B/s");
        sum.begin(0, None);
        sum.ended = 1;
        assert_eq!(sum.line(5), "1 of 3 done: 0 B, 5 B/s");
        assert_eq!(["59 s", "1 min 1 s", "2 h 5 min"], [59, 61, 7500].map(time));
    }
}
