//! Sending: what the window allows, the logs in turn, fresh messages and waiting ones.

use std::{sync::Arc, time::Instant};

use super::{Answered, Done, Link, State, Way, turns::TURN};
use crate::{backoff::Delays, publisher::delivery::Lane, spool::Taken};

impl Link<'_> {
    /// Whether the end has come: nothing fresh is left and nothing is in flight, or the time for it is over.
    pub(super) fn is_drained(&self) -> bool {
        let Some(until) = self.draining else { return false };
        let idle = |log: &Arc<str>| {
            let stuck = self.deliveries.is_gentle(log);
            stuck || (self.publisher.spool.offers(log).0.is_none() && self.deliveries.in_flight(log) == 0)
        };
        Instant::now() >= until || self.ways.keys().all(idle)
    }

    /// Sends what the window allows, the logs in turn, and opens channels where something waits for one.
    pub(super) fn fill(&mut self) {
        if self.publisher.spool.log_count() > self.ways.len() {
            self.see_logs();
        }
        if self.blocked.is_some() {
            return;
        }
        self.end_turns();
        let logs: Vec<Arc<str>> = self.ways.keys().cloned().collect();
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn % logs.len().max(1);
        loop {
            let lanes = match self.deliveries.prefers() {
                Lane::Fresh => [Lane::Fresh, Lane::Waiting],
                Lane::Waiting => [Lane::Waiting, Lane::Fresh],
            };
            let in_turn = || logs.iter().cycle().skip(first).take(logs.len());
            if !lanes.into_iter().any(|lane| in_turn().any(|log| self.send_one(log, lane))) {
                return;
            }
        }
    }

    /// A log that is new gets a way.
    fn see_logs(&mut self) {
        for log in self.publisher.spool.logs() {
            let new = |log: &Arc<str>| Way {
                state: State::Closed(None),
                key: self.publisher.routing_key.of(log),
                era: 0,
                opened: Instant::now(),
                delays: Delays::new(&self.publisher.retry),
                held: None,
                trouble: None,
            };
            self.ways.entry(log).or_insert_with_key(new);
        }
    }

    /// Sends one message of a log, if it has one in this lane and may.
    fn send_one(&mut self, log: &Arc<str>, lane: Lane) -> bool {
        let now = Instant::now();
        let (fresh, waits) = self.publisher.spool.offers(log);
        let gentle = self.deliveries.is_gentle(log);
        let paced = lane == Lane::Waiting && (self.draining.is_some() || self.pace.next(now).is_some());
        let Some(way) = self.ways.get_mut(log) else { return false };
        let something = match lane {
            // What came back goes first: it may be what the broker does not want, and is found with a window of one.
            Lane::Fresh => fresh.is_some() && !(gentle && (waits || way.held.is_some())),
            Lane::Waiting => (waits || way.held.is_some()) && !paced,
        };
        if !something
            || !self.open(log, now)
            || !self.deliveries.fits(log, fresh.filter(|_| lane == Lane::Fresh).unwrap_or(0))
        {
            return false;
        }
        let Some(way) = self.ways.get_mut(log) else { return false };
        let taken = match lane {
            Lane::Fresh => self.publisher.spool.take_fresh(log),
            Lane::Waiting => way.held.take().or_else(|| self.publisher.spool.take_waiting(log)),
        };
        let Some(taken) = taken else { return false };
        if lane == Lane::Waiting && !self.deliveries.fits(log, taken.batch.body.len()) {
            way.held = Some(taken);
            return false;
        }
        self.publish(log, &taken, lane, now);
        true
    }

    /// Whether the log's channel is open and not pausing; begins to open it where it is not.
    fn open(&mut self, log: &Arc<str>, now: Instant) -> bool {
        let Some(way) = self.ways.get_mut(log) else { return false };
        match &mut way.state {
            State::Opening => false,
            State::Closed(Some(until)) | State::Open(_, Some(until)) if *until > now => false,
            State::Open(_, until) => {
                *until = None;
                !self.scarce || way.opened + TURN > now
            }
            State::Closed(_) => {
                way.state = State::Opening;
                let (connection, log, era) = (Arc::clone(&self.connection), Arc::clone(log), way.era);
                self.channels.push(Box::pin(async move {
                    let channel = connection.channel().await;
                    Done::Opened { log, era, channel }
                }));
                false
            }
        }
    }

    fn publish(&mut self, log: &Arc<str>, taken: &Taken, lane: Lane, now: Instant) {
        let Some(way) = self.ways.get(log) else { return };
        let State::Open(channel, _) = &way.state else { return };
        let tag = self.deliveries.sent(log, taken, lane, now);
        if lane == Lane::Waiting {
            self.pace.went(taken.batch.body.len());
        }
        self.publisher.health.delivery(|delivery| delivery.published += 1);
        let confirm = channel.publish(&self.publisher.config.exchange, &way.key, &taken.batch, taken.replayed);
        let (log, era) = (Arc::clone(log), way.era);
        self.answers.push(Box::pin(async move { Answered { log, era, tag, answer: confirm.await } }));
    }
}
