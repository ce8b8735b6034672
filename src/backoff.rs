//! Backoff: how long to wait before trying again, without end.
//!
//! The policy is that of the crate `backoff`, of which only `next_backoff()` is used, here and nowhere else (it is
//! asked for and unmaintained: see deny.toml). Nothing sleeps here; the caller does.
//!
//! The surprising thing: full jitter. A wait is drawn evenly from zero to the interval, not around it, so that
//! many agents that lost the same server at once do not come back at once.

use std::{fmt, ops::RangeInclusive, time::Duration};

use ::backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

use crate::settings::{Reader, Section};

/// Which waits can be configured: shorter ones would hammer a server that is in trouble, longer ones look dead.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// The `[retry]` table: for broker and database alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The longest first wait.
    pub initial: Duration,
    /// The longest wait of all.
    pub max: Duration,
    /// By how much the interval grows after each failure.
    pub multiplier: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), max: Duration::from_secs(10), multiplier: 2.0 }
    }
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        let config = Self {
            initial: reader.key_in("initial", default.initial, WAITS, "The longest first wait after a failure."),
            max: reader.key_in("max", default.max, WAITS, "The longest wait; there is no end to trying."),
            multiplier: reader.key_in(
                "multiplier",
                default.multiplier,
                1.0..=10.0,
                "By how much the interval grows with each failure in a row. Each wait is random from 0 to the interval.",
            ),
        };
        if config.max < config.initial {
            reader.mistake("max", "no less than retry.initial");
        }
        config
    }
}

/// The waits between tries in a row: random from 0 to `initial * multiplier^n`, never above `max`.
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// Begins with the first wait.
    pub fn new(config: &Config) -> Self {
        // A factor of 1 draws from 0 to twice the interval: half of it makes this full jitter.
        let mut builder = ExponentialBackoffBuilder::new();
        builder
            .with_initial_interval(config.initial / 2)
            .with_max_interval(config.max / 2)
            .with_multiplier(config.multiplier)
            .with_randomization_factor(1.0)
            .with_max_elapsed_time(None);
        Self(builder.build())
    }

    /// How long to wait now.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and an iterator's would have to be handled")]
    pub fn next(&mut self) -> Duration {
        // Without a longest elapsed time there is always a next one.
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// After a success: begins again with the first wait.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl fmt::Debug for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delays").field("interval", &(self.0.current_interval * 2)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::{Given, Origin, Raw};

    /// Draws wait number `n` many times: all are at most `want`, and they fill the range from 0 to it.
    #[track_caller]
    fn check(n: usize, want: Duration) {
        let config = Config::default();
        let draw = |_| {
            let mut delays = Delays::new(&config);
            (0..=n).map(|_| delays.next()).last().expect("at least one")
        };
        let draws: Vec<Duration> = (0..2000).map(draw).collect();
        let (least, most) = (draws.iter().min().expect("some"), draws.iter().max().expect("some"));
        assert!(*most <= want + Duration::from_nanos(1), "{most:?} of {want:?}");
        assert!(*most > want.mul_f64(0.95) && *least < want.mul_f64(0.05), "{least:?} to {most:?} of {want:?}");
    }

    #[test]
    fn waits_are_even_from_zero_to_a_growing_interval() {
        check(0, Duration::from_millis(500));
        check(1, Duration::from_secs(1));
        check(4, Duration::from_secs(8));
        check(5, Duration::from_secs(10));
        check(500, Duration::from_secs(10));
    }

    #[test]
    fn a_success_begins_with_the_first_wait() {
        let mut delays = Delays::new(&Config::default());
        for _ in 0..100 {
            delays.next();
        }
        delays.reset();
        assert!(delays.next() <= Duration::from_millis(501));
    }

    #[test]
    fn the_longest_wait_is_no_less_than_the_first() {
        let given = |text: &str| Given { raw: Raw::Text(text.into()), origin: Origin::Variable("V".into()) };
        let mut reader = Reader::new(BTreeMap::from([("max".into(), given("100ms"))]));
        Config::read(&mut reader);
        let (mistakes, _) = reader.finish();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }
}
