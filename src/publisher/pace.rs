//! Pace: how fast what waited in the spool may go. Pure.

use std::time::{Duration, Instant};

/// A bucket that fills at `rate` bytes a second and holds one second's worth.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u64>,
    /// Bytes that may go now; below zero after a large message.
    credit: f64,
    at: Instant,
}

impl Pace {
    /// At most so many bytes a second; `None` is unlimited.
    pub fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate, credit: 0.0, at: now }
    }

    /// When the next message may go; `None` is now.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        let rate = self.rate? as f64;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.credit, self.at) = ((self.credit + passed * rate).min(rate), now);
        // A message may go with any credit at all, however large it is: the debt is waited for afterwards.
        (self.credit < 0.0).then(|| now + Duration::from_secs_f64(-self.credit / rate))
    }

    /// So many bytes went.
    pub fn went(&mut self, bytes: usize) {
        self.credit -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whatever_the_size() {
        for size in [100, 3000] {
            let start = Instant::now();
            let mut pace = Pace::new(Some(1000), start);
            let (mut now, mut bytes) = (start, 0);
            while now < start + Duration::from_secs(60) {
                if let Some(later) = pace.next(now) {
                    now = later;
                    continue;
                }
                pace.went(size);
                bytes += size;
            }
            assert!((59_000..=64_000).contains(&bytes), "{bytes} bytes in a minute at 1000 a second");
        }
        assert_eq!(Pace::new(None, Instant::now()).next(Instant::now()), None);
    }
}
