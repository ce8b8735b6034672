//! Progress of what takes long: one line on a terminal that is written over, and gone at the end. Elsewhere nothing.
//!
//! Our own although there is a crate for it, indicatif: that needs the library libm, and every agent would hold 0.3 MiB of
//! that (`/proc/PID/smaps`) for a line that it never shows.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::super::people::{size, span};

/// How often the line is written at the most: eyes are not faster.
const EVERY: Duration = Duration::from_millis(100);

/// To the first column, and everything behind it away (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";

/// What is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    Bytes,
    Messages,
}

/// How far something is.
pub(super) struct Progress {
    unit: Unit,
    total: u64,
    /// Whether anybody sees it.
    seen: bool,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    done: u64,
    /// When it got on: before that, somebody was waited for.
    start: Option<Instant>,
    at: Option<Instant>,
}

impl Progress {
    pub(super) fn of(total: u64, unit: Unit) -> Self {
        Self { unit, total, seen: io::stderr().is_terminal(), shown: Mutex::default() }
    }

    /// So much more is done.
    pub(super) fn add(&self, more: u64) {
        let mut shown = self.shown();
        shown.done += more;
        self.show(&mut shown);
    }

    /// So much is done.
    pub(super) fn reach(&self, done: u64) {
        let mut shown = self.shown();
        shown.done = done;
        self.show(&mut shown);
    }

    /// Takes the line away, for others or for good.
    pub(super) fn clear(&self) {
        if self.shown().at.take().is_some() {
            write(CLEAR);
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, shown: &mut Shown) {
        if !self.seen || shown.at.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        let now = Instant::now();
        shown.at = Some(now);
        let start = if shown.done == 0 { now } else { *shown.start.get_or_insert(now) };
        let line = line(shown.done, self.total, self.unit, now - start);
        let columns = terminal_size::terminal_size_of(io::stderr()).map_or(usize::MAX, |(width, _)| width.0.into());
        // One that reaches the last column may begin another line.
        write(&format!("{CLEAR}{}", line.chars().take(columns.saturating_sub(1)).collect::<String>()));
    }
}

fn write(text: &str) {
    // Where the terminal is gone there is nobody left to show it to.
    let _gone = io::stderr().lock().write_all(text.as_bytes());
}

/// `1.5 GiB of 3.0 GiB, 50 %, 512.0 MiB a second, 3.0 s left`.
fn line(done: u64, total: u64, unit: Unit, took: Duration) -> String {
    let amount = |number: u64| match unit {
        Unit::Bytes => size(number),
        Unit::Messages => number.to_string(),
    };
    let name = match unit {
        Unit::Bytes => "",
        Unit::Messages => " messages",
    };
    // What is looked at once more counts once more.
    let done = done.min(total);
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let far = format!("{} of {}{name}, {percent} %", amount(done), amount(total));
    let millis = took.as_millis();
    match u64::try_from(u128::from(done) * 1000 / millis.max(1)) {
        Ok(per_second) if done > 0 && millis > 0 => {
            let left = (total - done) as f64 * took.as_secs_f64() / done as f64;
            format!("{far}, {} a second, {} left", amount(per_second), span(left))
        }
        _ => far,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_how_fast_and_how_long() {
        let told = |done, total, unit, seconds| line(done, total, unit, Duration::from_secs(seconds));
        let gib = 1 << 30;
        assert_eq!(told(gib, 3 * gib, Unit::Bytes, 2), "1.0 GiB of 3.0 GiB, 33 %, 512.0 MiB a second, 4.0 s left");
        assert_eq!(told(0, 10, Unit::Messages, 5), "0 of 10 messages, 0 %");
        assert_eq!(told(10, 10, Unit::Messages, 5), "10 of 10 messages, 100 %, 2 a second, 0.0 s left");
        assert_eq!(told(1, 1000, Unit::Messages, 1), "1 of 1000 messages, 0 %, 1 a second, 17 min left");
        assert_eq!(told(0, 0, Unit::Bytes, 0), "0 B of 0 B, 0 %");
        assert_eq!(told(9, 3, Unit::Messages, 3), "3 of 3 messages, 100 %, 1 a second, 0.0 s left");
        assert_eq!(told(u64::MAX, u64::MAX, Unit::Messages, 0), format!("{0} of {0} messages, 100 %", u64::MAX));
    }
}
