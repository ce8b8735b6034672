//! The limit: so many lines a minute from one place in the code, and then a word on how many there were more. A log that is
//! flooded hides what matters, and fills disks. Who asked for `debug` or `trace` gets all of it.

use std::{
    collections::HashMap,
    fmt,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tracing::{
    Event, Level, Metadata,
    callsite::Identifier,
    field::{Field, Visit},
    warn,
};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one place that are written in one [`SPAN`].
const MOST: u32 = 30;
const SPAN: Duration = Duration::from_secs(60);

/// Holds down places that say too much.
#[derive(Debug)]
pub(super) struct Limit;

impl<S> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(event.metadata().callsite()).or_insert_with(|| Place::new(Instant::now()));
        let admitted = place.admits(Instant::now());
        if !admitted && place.words.is_empty() {
            event.record(&mut Words(&mut place.words));
            OVERFLOW.notify_one();
        }
        admitted
    }
}

static PLACES: LazyLock<Mutex<HashMap<Identifier, Place>>> = LazyLock::new(Mutex::default);
static OVERFLOW: Notify = Notify::const_new();

/// What one place said lately.
#[derive(Debug)]
struct Place {
    since: Instant,
    lines: u32,
    left_out: u64,
    /// What it says, of the first line that was left out.
    words: String,
}

impl Place {
    fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, left_out: 0, words: String::new() }
    }

    /// Whether a line more is written. One that is not is counted.
    fn admits(&mut self, now: Instant) -> bool {
        // What was left out has to be told first.
        if now.saturating_duration_since(self.since) >= SPAN && self.left_out == 0 {
            *self = Self::new(now);
        }
        if self.lines < MOST {
            self.lines += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// What is to be told now that its minute is over.
    fn over(&mut self, now: Instant) -> Option<(u64, String)> {
        let over = now.saturating_duration_since(self.since) >= SPAN && self.left_out > 0;
        over.then(|| {
            let Self { left_out, words, .. } = std::mem::replace(self, Self::new(now));
            (left_out, words)
        })
    }
}

/// Takes the message of an event.
struct Words<'a>(&'a mut String);

impl Visit for Words<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

/// Tells how many lines were left out, a line for each place and minute, for as long as it is polled.
pub async fn tell_left_out() {
    loop {
        OVERFLOW.notified().await;
        loop {
            tokio::time::sleep(SPAN / 12).await;
            let (told, waits) = {
                let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
                let told: Vec<_> = places.values_mut().filter_map(|place| place.over(Instant::now())).collect();
                (told, places.values().any(|place| place.left_out > 0))
            };
            for (lines, like) in told {
                warn!(lines, like, "lines like it were left out");
            }
            if !waits {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_thirty_lines_a_minute_are_written_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut place = Place::new(start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!((0..50).filter(|second| place.admits(at(*second))).count(), 30);
        assert_eq!(place.over(at(59)), None);
        assert_eq!(place.over(at(60)).map(|(left_out, _)| left_out), Some(20));
        assert_eq!(place.over(at(60)), None, "told once");
        assert_eq!((60..70).filter(|second| place.admits(at(*second))).count(), 10, "a new minute");
        assert_eq!((0..1000).filter(|minute| place.admits(at(200 + 60 * minute))).count(), 1000, "no flood");
    }
}
