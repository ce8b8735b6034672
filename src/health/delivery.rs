//! What became of what was published, and how long confirms take.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::units::Time;

/// What became of what was published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Delivery {
    /// Messages handed to the broker, repeated ones counted each time.
    pub published: u64,
    /// Messages that the broker confirmed and did not return.
    pub confirmed: u64,
    /// Messages that came back because no queue wanted them.
    pub returned: u64,
    /// Messages that the broker refused.
    pub nacked: u64,
    /// Connections to the broker after the first one.
    pub reconnects: u64,
    /// Why messages do not get through now, and what mends it; nil if they do.
    pub trouble: Option<String>,
    /// Since when, by the host's clock; nil if they do. A connection that comes back and delivers nothing is no end of it.
    pub trouble_since: Option<Time>,
    /// The node that the agent is connected to, as `host:port`; `None` while no connection stands.
    #[serde(skip)]
    pub node: Option<String>,
    /// Whether a connection stood before.
    #[serde(skip)]
    pub was_connected: bool,
    /// Channels that are open on that connection.
    #[serde(skip)]
    pub channels: usize,
    /// How long confirms took since the start of this run.
    #[serde(skip)]
    pub confirms: Confirms,
    /// Since when nothing was confirmed without trouble.
    #[serde(skip)]
    pub troubled: Option<Time>,
}

impl Delivery {
    /// A connection stands.
    pub fn connect(&mut self, node: &str) {
        self.set_trouble(None);
        self.reconnects += u64::from(self.was_connected);
        (self.node, self.was_connected) = (Some(node.to_owned()), true);
    }

    /// No connection stands any more.
    pub fn disconnect(&mut self) {
        (self.node, self.channels) = (None, 0);
    }

    /// Takes note of why messages do not get through, or that nothing is known to be wrong.
    pub fn set_trouble(&mut self, trouble: Option<String>) {
        self.trouble_since = trouble.as_ref().map(|_| *self.troubled.get_or_insert_with(Time::now));
        self.trouble = trouble;
    }

    /// A message was confirmed and not returned, so long after it was sent.
    pub fn confirm(&mut self, took: Duration) {
        self.confirmed += 1;
        self.confirms.note(took);
        if self.trouble.is_none() {
            self.troubled = None;
        }
    }
}

/// Upper bounds of the buckets that confirms are counted in; a last one has no bound. From a broker on the same host to
/// one that is about to be given up: `amqp.confirm_timeout` is 30 s if not said.
const BOUNDS: [Duration; 13] = {
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
    [
        Duration::from_micros(500),
        ms(1),
        ms(2),
        ms(5),
        ms(10),
        ms(25),
        ms(50),
        ms(100),
        ms(250),
        ms(500),
        ms(1_000),
        ms(5_000),
        ms(30_000),
    ]
};

/// How long messages waited for their confirm: a histogram.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confirms {
    counts: [u64; BOUNDS.len() + 1],
    total: Duration,
}

impl Confirms {
    fn note(&mut self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.total = self.total.saturating_add(took);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Each bucket's upper bound in seconds, infinite for the last one, and how many are in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        bounds.zip(self.counts)
    }

    /// The time within which such a share of them (0 to 1) came, as precise as the buckets; `None` if there were none.
    pub fn within(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil();
        let mut below = 0.0;
        for (upper, count) in self.buckets().filter(|(_, count)| *count > 0) {
            let count = count as f64;
            if below + count >= wanted {
                // Of the last bucket nothing but its lower end is known.
                let upper = if upper.is_finite() { upper } else { BOUNDS.last()?.as_secs_f64() };
                let lower = BOUNDS.iter().map(Duration::as_secs_f64).rfind(|bound| *bound < upper).unwrap_or(0.0);
                return Some(Duration::from_secs_f64(lower + (upper - lower) * ((wanted - below) / count)));
            }
            below += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_are_counted_by_how_long_they_took() {
        let mut confirms = Confirms::default();
        assert_eq!((confirms.count(), confirms.within(0.5)), (0, None));
        for ms in [1, 3, 3, 4, 60_000] {
            confirms.note(Duration::from_millis(ms));
        }
        assert_eq!((confirms.count(), confirms.total()), (5, Duration::from_millis(60_011)));
        let filled: Vec<_> = confirms.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.001, 1), (0.005, 3), (f64::INFINITY, 1)]);
        assert_eq!(confirms.within(0.2), Some(Duration::from_millis(1)));
        assert_eq!(confirms.within(0.5), Some(Duration::from_millis(4)), "two of the three between 2 and 5 ms");
        assert_eq!(confirms.within(1.0), Some(Duration::from_secs(30)), "longer than the longest bound: at least that");
    }

    #[test]
    fn trouble_ends_with_a_confirm_and_not_with_a_connection() {
        let mut delivery = Delivery::default();
        delivery.set_trouble(Some("refused".into()));
        let since = delivery.trouble_since;
        assert!(since.is_some());
        delivery.connect("node:5672");
        assert_eq!((delivery.trouble_since, delivery.troubled), (None, since));
        delivery.set_trouble(Some("again".into()));
        assert_eq!(delivery.trouble_since, since, "nothing was delivered in between");
        delivery.connect("node:5672");
        delivery.confirm(Duration::ZERO);
        assert_eq!(delivery.troubled, None);
        delivery.disconnect();
        assert_eq!((&delivery.node, delivery.channels, delivery.reconnects), (&None, 0, 1));
    }
}
