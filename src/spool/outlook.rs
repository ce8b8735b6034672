//! The outlook: since when the disk is in trouble, and how long there is room if it goes on as it does. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::units::Time;

/// Growth is measured over so much time at the most, and at the least.
const LONGEST: Duration = Duration::from_secs(600);
const SHORTEST: Duration = Duration::from_secs(30);
/// Not more often is it looked at.
const EVERY: Duration = Duration::from_secs(5);

/// What was seen lately.
#[derive(Debug, Default)]
pub struct Outlook {
    /// Bytes that were used, and when.
    used: VecDeque<(Instant, u64)>,
    /// Since when there is trouble.
    since: Option<Time>,
}

impl Outlook {
    /// Takes note of the bytes that are used now.
    pub fn note(&mut self, now: Instant, used: u64) {
        if self.used.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < EVERY) {
            return;
        }
        // What became less was delivered or dropped: growth is measured from there on.
        if self.used.back().is_some_and(|(_, before)| *before > used) {
            self.used.clear();
        }
        self.used.push_back((now, used));
        while self.used.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > LONGEST) {
            self.used.pop_front();
        }
    }

    /// How long so much room lasts; `None` while nothing is known to grow.
    pub fn lasts(&self, room: u64) -> Option<Duration> {
        let ((begin, less), (end, more)) = (self.used.front()?, self.used.back()?);
        let took = end.saturating_duration_since(*begin);
        if took < SHORTEST || more <= less {
            return None;
        }
        let seconds = room as f64 / ((more - less) as f64 / took.as_secs_f64());
        // Centuries are long enough.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Since when there is trouble, if there is now.
    pub fn since(&mut self, trouble: bool) -> Option<Time> {
        self.since = trouble.then(|| self.since.unwrap_or_else(Time::now));
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_lasts_as_long_as_the_growth_of_the_last_minutes_says() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut outlook = Outlook::default();
        assert_eq!(outlook.lasts(1 << 20), None);
        for at in 0..=100 {
            outlook.note(start + second * at, u64::from(at) * 1000);
        }
        assert_eq!(outlook.lasts(500_000), Some(Duration::from_secs(500)));
        assert_eq!(outlook.lasts(0), Some(Duration::ZERO));
        outlook.note(start + second * 110, 50_000);
        assert_eq!(outlook.lasts(500_000), None, "it became less");
        for at in 111..=2000 {
            outlook.note(start + second * at, 50_000);
        }
        assert_eq!(outlook.lasts(500_000), None, "it does not grow");
        assert!(outlook.used.len() <= 121, "{}", outlook.used.len());
    }

    #[test]
    fn trouble_has_a_beginning_and_an_end() {
        let mut outlook = Outlook::default();
        assert_eq!(outlook.since(false), None);
        let since = outlook.since(true);
        assert!(since.is_some());
        assert_eq!(outlook.since(true), since);
        assert_eq!(outlook.since(false), None);
    }
}
