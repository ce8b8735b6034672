//! Answers: what the broker said of messages and channels, and what follows for their logs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tracing::{error, info, warn};

use super::{Answered, KEPT, Link, Pending, State, turns::TURN};
use crate::{
    amqp::{Channel, Confirmed, Error, Unroutable},
    event::status::Reason,
    publisher::delivery::{Outcome, Overdue, Settled},
    spool::chain,
    units,
};

impl Link<'_> {
    pub(super) fn opened(&mut self, log: &Arc<str>, era: u64, channel: Result<Channel, Error>) -> Result<(), Error> {
        let Some(way) = self.ways.get_mut(log).filter(|way| way.era == era) else { return Ok(()) };
        match channel {
            Ok(channel) => {
                (way.state, way.opened) = (State::Open(channel, None), Instant::now());
                Ok(())
            }
            Err(Error::NoChannel) => {
                way.state = State::Closed(Some(Instant::now() + TURN / 10));
                self.take_turns();
                Ok(())
            }
            Err(error) if error.ends_connection() => Err(error),
            Err(_) => {
                way.state = State::Closed(Some(Instant::now() + way.delays.next()));
                Ok(())
            }
        }
    }

    /// Takes in this answer and all others that are there, and only then settles: see [`crate::publisher::delivery`].
    pub(super) fn answered(&mut self, first: Answered) -> Result<(), Error> {
        let now = Instant::now();
        let (mut logs, mut ended) = (BTreeSet::new(), Vec::new());
        for Answered { log, era, tag, answer } in std::iter::once(first).chain(all_ready(&mut self.answers)) {
            if self.ways.get(&log).is_none_or(|way| way.era != era) {
                continue;
            }
            match answer {
                Ok(Confirmed { ack, returned }) => {
                    self.confirmed = true;
                    self.deliveries.answered(&log, tag, ack, returned, now);
                    logs.insert(log);
                }
                Err(error) => ended.push((log, era, error)),
            }
        }
        for log in logs {
            let settled = self.deliveries.settle(&log);
            let is_delivered = |settled: &&Settled| settled.outcome == Outcome::Delivered;
            self.publisher.spool.ack(&log, settled.iter().filter(is_delivered).map(|settled| settled.id));
            for settled in &settled {
                self.settle(&log, settled);
            }
        }
        for (log, era, error) in ended {
            // Each message of a channel that ended tells of it.
            if self.ways.get(&log).is_some_and(|way| way.era == era) {
                self.channel_ended(&log, error)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, log: &Arc<str>, settled: &Settled) {
        let (spool, health) = (&self.publisher.spool, &self.publisher.health);
        let discard = self.publisher.config.unroutable == Unroutable::Discard;
        match settled.outcome {
            Outcome::Delivered => {
                health.delivery(|delivery| delivery.confirm(settled.took));
                self.delivered(log);
            }
            Outcome::Returned => {
                health.delivery(|delivery| delivery.returned += 1);
                let key = self.ways.get(log).map(|way| &*way.key).unwrap_or_default();
                let exchange = &self.publisher.config.exchange;
                let trouble = format!("no queue is bound to exchange {exchange:?} for routing key {key:?}");
                if discard {
                    spool.lose(log, settled.id, Reason::Discarded, settled.events);
                    self.trouble(log, trouble, "messages are discarded, as amqp.unroutable says");
                } else {
                    spool.put_back(log, settled.id);
                    spool.set_unwanted(log);
                    self.pause(log, trouble);
                }
            }
            Outcome::Refused => {
                health.delivery(|delivery| delivery.nacked += 1);
                spool.put_back(log, settled.id);
                self.pause(log, "the broker refused a message (nack): a queue is full, or has failed".into());
            }
        }
    }

    fn delivered(&mut self, log: &Arc<str>) {
        let Some(way) = self.ways.get_mut(log) else { return };
        way.delays.reset();
        if let Some(trouble) = way.trouble.take() {
            info!(collector = &**log, trouble, "messages are delivered again");
            self.tell_trouble();
        }
    }

    /// Tries this log again later, one message at a time.
    fn pause(&mut self, log: &Arc<str>, trouble: String) {
        self.deliveries.go_gently(log);
        let Some(way) = self.ways.get_mut(log) else { return };
        if let State::Open(_, until) = &mut way.state {
            // Several answers may come before the pause is felt: one wait for all of them.
            if until.is_none() {
                *until = Some(Instant::now() + way.delays.next());
            }
        }
        self.trouble(log, trouble, KEPT);
    }

    /// Tells the operator what is wrong with a log, once.
    fn trouble(&mut self, log: &Arc<str>, trouble: String, consequence: &str) {
        let Some(way) = self.ways.get_mut(log) else { return };
        if way.trouble.as_ref() != Some(&trouble) {
            warn!(collector = &**log, trouble, "{consequence}");
            way.trouble = Some(trouble);
            self.tell_trouble();
        }
    }

    /// Puts what is wrong where `agent_status` finds it.
    pub(super) fn tell_trouble(&self) {
        let blocked = self.blocked.iter().map(|(_, reason)| format!("the broker takes no messages for now: {reason}"));
        let troubles = self.ways.iter().filter_map(|(log, way)| Some(format!("{log}: {}", way.trouble.as_ref()?)));
        let text = blocked.chain(troubles).collect::<Vec<_>>().join("; ");
        self.publisher.health.delivery(|delivery| delivery.set_trouble(Some(text).filter(|text| !text.is_empty())));
    }

    /// The log's channel is over: what was in flight comes back, and it is tried again alone.
    fn channel_ended(&mut self, log: &Arc<str>, error: Error) -> Result<(), Error> {
        // Without its exchange nobody can be served: connecting anew declares it, or says that it is missing.
        if error.ends_connection() || error.code() == Some(404) {
            return Err(error);
        }
        let flights = self.deliveries.end(log);
        let too_large = error.code() == Some(406) && error.to_string().contains("size");
        match flights.as_slice() {
            [(id, events)] if too_large => {
                error!(collector = &**log, seq = id.seq, reason = %error, "the broker takes no message of this size; it is declared lost");
                self.publisher.spool.lose(log, *id, Reason::TooLarge, *events);
            }
            _ => flights.iter().for_each(|(id, _)| self.publisher.spool.put_back(log, *id)),
        }
        let Some(way) = self.ways.get_mut(log) else { return Ok(()) };
        way.era += 1;
        let wait = if too_large { Duration::ZERO } else { way.delays.next() };
        let old = std::mem::replace(&mut way.state, State::Closed(Some(Instant::now() + wait)));
        self.close(old);
        if !too_large {
            self.trouble(log, chain(&error), KEPT);
        }
        Ok(())
    }

    pub(super) fn see_overdue(&mut self) -> Result<(), Error> {
        let limit = self.publisher.config.confirm_timeout;
        if self.blocked.is_some() {
            return Ok(());
        }
        let reason = format!("no confirm within {}", units::duration(limit));
        match self.deliveries.overdue(Instant::now(), limit) {
            None => Ok(()),
            Some(Overdue::Everything) => Err(Error::Connection { reason: format!("{reason} for any message") }),
            Some(Overdue::Log(log)) => self.channel_ended(&log, Error::Channel { code: 0, reason }),
        }
    }
}

/// Everything that is ready now. Not only until the first pause: `FuturesUnordered` makes one now and then with more in
/// its queue, and says so by waking its waker at once.
fn all_ready<T>(pending: &mut Pending<T>) -> Vec<T> {
    struct More(AtomicBool);
    impl Wake for More {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let more = Arc::new(More(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&more));
    let mut ready = Vec::new();
    loop {
        match pending.poll_next_unpin(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(one)) => ready.push(one),
            Poll::Pending if more.0.swap(false, Ordering::SeqCst) => {}
            Poll::Ready(None) | Poll::Pending => return ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::stream::FuturesUnordered;

    use super::*;

    /// Pending at first, and awake again at once.
    async fn second_time(number: usize) -> usize {
        let mut polled = false;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            if std::mem::replace(&mut polled, true) { Poll::Ready(number) } else { Poll::Pending }
        })
        .await
    }

    #[test]
    fn all_that_is_ready_is_found_though_the_queue_pauses() {
        let mut pending: Pending<usize> = FuturesUnordered::new();
        for number in 0..10 {
            pending.push(Box::pin(second_time(number)));
        }
        pending.push(Box::pin(pending_for_ever()));
        let mut ready = all_ready(&mut pending);
        ready.sort_unstable();
        assert_eq!(ready, (0..10).collect::<Vec<_>>());
        assert_eq!(pending.len(), 1);
    }

    async fn pending_for_ever() -> usize {
        pending().await
    }
}
