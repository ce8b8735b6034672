//! Turns: where the broker allows fewer channels on a connection (its `channel_max`) than there are logs.
//!
//! A log then has its channel for a turn, gives it back when nothing is in flight on it, and gets one again when it has
//! something to send. Slower, and nobody is left out.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Done, Link, State};

/// For so long a log has its channel where channels are scarce.
pub(super) const TURN: Duration = Duration::from_secs(1);

impl Link<'_> {
    /// A log got no channel: from now on they take turns, and whoever has nothing to send gives its channel back at once.
    pub(super) fn take_turns(&mut self) {
        if !std::mem::replace(&mut self.scarce, true) {
            warn!(
                "the broker allows fewer channels on a connection (its channel_max) than there are collectors; they take turns"
            );
        }
        self.give_back(|_| true);
    }

    /// Whose turn is over gives its channel back.
    pub(super) fn end_turns(&mut self) {
        let now = Instant::now();
        if self.scarce {
            self.give_back(|opened| opened + TURN <= now);
        }
    }

    /// Closes channels on which nothing is in flight, by when they were opened.
    fn give_back(&mut self, over: impl Fn(Instant) -> bool) {
        let mut closed = Vec::new();
        for (log, way) in &mut self.ways {
            let State::Open(_, pause) = way.state else { continue };
            if over(way.opened) && self.deliveries.in_flight(log) == 0 {
                way.era += 1;
                closed.push(std::mem::replace(&mut way.state, State::Closed(pause)));
            }
        }
        for state in closed {
            self.close(state);
        }
    }

    /// Closes a channel in order, beside everything else.
    pub(super) fn close(&self, state: State) {
        if let State::Open(channel, _) = state {
            self.channels.push(Box::pin(async move {
                channel.close().await;
                Done::Closed
            }));
        }
    }
}
