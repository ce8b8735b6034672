//! One connection's life: a channel for each log, what is in flight on them, and what the broker says.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    Phase, Publisher,
    delivery::{Deliveries, Lane, Outcome, Overdue, Settled},
    pace::Pace,
};
use crate::{
    amqp::{Channel, Confirmed, Connection, Error, Signal, Signals, Unroutable},
    backoff::Delays,
    event::status::Reason,
    spool::{Taken, chain},
};

/// Why a connection is no longer served.
pub(super) enum End {
    /// All that was fresh is delivered, or the time for it is over.
    Drained,
    /// It was lost or left.
    Lost(Error),
}

/// What became of a message that was published.
struct Answered {
    log: Arc<str>,
    era: u64,
    tag: u64,
    answer: Result<Confirmed, Error>,
}

/// A channel that was waited for.
enum Done {
    Opened { log: Arc<str>, era: u64, channel: Result<Channel, Error> },
    Closed,
}

/// Everything that makes the loop turn.
enum Action {
    /// The spool has something.
    Ready,
    /// The broker answered a message; more answers may be there.
    Answered(Answered),
    /// A channel opened or closed.
    Done(Done),
    /// The broker spoke of the whole connection.
    Signal(Option<Signal>),
    /// The phase changed.
    Phase,
    /// A time has come: a pause is over, a confirm is overdue, or the pace allows the next one.
    Tick,
}

/// What becomes of messages of a log that cannot be delivered now.
const KEPT: &str = "messages are kept in the spool and tried again";

/// One log's way to the broker.
struct Way {
    state: State,
    /// Counts channels: answers of an earlier one are of no interest.
    era: u64,
    delays: Delays,
    /// Taken out of the spool, and the window had no room for it.
    held: Option<Taken>,
    /// What the operator was told last.
    trouble: Option<String>,
}

enum State {
    /// A channel is to be opened, not before the time given.
    Closed(Option<Instant>),
    Opening,
    /// Messages go, not before the time given.
    Open(Channel, Option<Instant>),
}

type Pending<T> = FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send>>>;

/// A connection that is served.
pub(super) struct Link<'a> {
    publisher: &'a Publisher,
    connection: Arc<Connection>,
    ways: BTreeMap<Arc<str>, Way>,
    deliveries: Deliveries,
    answers: Pending<Answered>,
    channels: Pending<Done>,
    pace: Pace,
    /// Since when the broker takes nothing, and what it said.
    blocked: Option<(Instant, String)>,
    /// Logs begin to be served in turn after this one.
    turn: usize,
    draining: Option<Instant>,
    confirmed: bool,
}

impl<'a> Link<'a> {
    pub(super) fn new(publisher: &'a Publisher, connection: Connection) -> Self {
        let config = &publisher.config;
        Self {
            publisher,
            connection: Arc::new(connection),
            ways: BTreeMap::new(),
            deliveries: Deliveries::new(config.window, config.window_bytes),
            answers: FuturesUnordered::new(),
            channels: FuturesUnordered::new(),
            pace: Pace::new(publisher.replay_rate, Instant::now()),
            blocked: None,
            turn: 0,
            draining: None,
            confirmed: false,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn serve(mut self, phase: &mut watch::Receiver<Phase>, delays: &mut Delays) -> End {
        let spool = Arc::clone(&self.publisher.spool);
        spool.set_live(Some(self.publisher.fresh_bytes()));
        let mut signals = self.connection.signals();
        let end = loop {
            self.see_phase(*phase.borrow_and_update());
            self.fill();
            if self.is_drained() {
                break End::Drained;
            }
            let action = self.select(phase, &mut signals).await;
            if let Err(error) = self.apply(action) {
                break End::Lost(error);
            }
            if std::mem::take(&mut self.confirmed) {
                delays.reset();
            }
        };
        spool.set_live(None);
        // A blocked broker reads no goodbye.
        let until = self.draining.filter(|_| matches!(end, End::Drained) && self.blocked.is_none());
        let connection = Arc::clone(&self.connection);
        drop(self);
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => connection.close_within(left).await,
            _ => connection.kill(),
        }
        end
    }

    fn see_phase(&mut self, phase: Phase) {
        if let Phase::Draining(until) = phase {
            self.draining = Some(until);
        }
    }

    /// Waits for whatever comes first. Changes nothing.
    async fn select(&mut self, phase: &mut watch::Receiver<Phase>, signals: &mut Signals) -> Action {
        let tick = self.next_tick();
        let tick = async {
            match tick {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(answered) = self.answers.next() => Action::Answered(answered),
            Some(done) = self.channels.next() => Action::Done(done),
            signal = signals.next() => Action::Signal(signal),
            () = self.publisher.spool.ready.notified() => Action::Ready,
            Ok(()) = phase.changed() => Action::Phase,
            () = tick => Action::Tick,
        }
    }

    fn next_tick(&mut self) -> Option<Instant> {
        let pauses = self.ways.values().filter_map(|way| match way.state {
            State::Closed(until) | State::Open(_, until) => until,
            State::Opening => None,
        });
        let pauses = pauses.min();
        let overdue = self.deliveries.oldest().filter(|_| self.blocked.is_none());
        let overdue = overdue.map(|sent| sent + self.publisher.config.confirm_timeout);
        let pace = self.pace.next(Instant::now());
        [pauses, overdue, pace, self.draining].into_iter().flatten().min()
    }

    /// Changes the state. An error ends the connection.
    fn apply(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Ready | Action::Phase | Action::Done(Done::Closed) => {}
            Action::Tick => {
                self.end_pauses(Instant::now());
                return self.see_overdue();
            }
            Action::Signal(None) => return Err(Error::Connection { reason: "it is closed".into() }),
            Action::Signal(Some(Signal::Lost(error))) => return Err(error),
            Action::Signal(Some(Signal::Blocked(reason))) => {
                warn!(reason, "the broker takes no messages for now; the spool keeps what comes");
                self.blocked.get_or_insert_with(|| (Instant::now(), reason));
                self.tell_trouble();
                // It may last for hours: what comes waits on disk.
                self.publisher.spool.set_live(Some(0));
            }
            Action::Signal(Some(Signal::Unblocked)) => {
                if let Some((since, _)) = self.blocked.take() {
                    info!("the broker takes messages again");
                    self.publisher.spool.set_live(Some(self.publisher.fresh_bytes()));
                    self.tell_trouble();
                    self.deliveries.forgive(since.elapsed());
                }
            }
            Action::Done(Done::Opened { log, era, channel }) => return self.opened(&log, era, channel),
            Action::Answered(first) => return self.answered(first),
        }
        Ok(())
    }

    fn end_pauses(&mut self, now: Instant) {
        for way in self.ways.values_mut() {
            if let State::Closed(until) | State::Open(_, until) = &mut way.state {
                *until = until.filter(|until| *until > now);
            }
        }
    }

    fn opened(&mut self, log: &Arc<str>, era: u64, channel: Result<Channel, Error>) -> Result<(), Error> {
        let Some(way) = self.ways.get_mut(log).filter(|way| way.era == era) else { return Ok(()) };
        match channel {
            Ok(channel) => {
                way.state = State::Open(channel, None);
                Ok(())
            }
            Err(error) if error.ends_connection() => Err(error),
            Err(_) => {
                way.state = State::Closed(Some(Instant::now() + way.delays.next()));
                Ok(())
            }
        }
    }

    /// Takes in this answer and all others that are there, and only then settles: see [`super::delivery`].
    fn answered(&mut self, first: Answered) -> Result<(), Error> {
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
            for settled in self.deliveries.settle(&log) {
                self.settle(&log, &settled);
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
                health.delivery(|delivery| delivery.confirmed += 1);
                spool.ack(log, settled.id);
                self.delivered(log);
            }
            Outcome::Returned => {
                health.delivery(|delivery| delivery.returned += 1);
                let key = self.publisher.routing_key.of(log);
                let exchange = &self.publisher.config.exchange;
                let trouble = format!("no queue is bound to exchange {exchange:?} for routing key {key:?}");
                if discard {
                    spool.lose(log, settled.id, Reason::Discarded, settled.events);
                    self.trouble(log, trouble, "messages are discarded, as amqp.unroutable says");
                } else {
                    spool.put_back(log, settled.id);
                    spool.set_unwanted(log, true);
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
    fn tell_trouble(&self) {
        let blocked = self.blocked.iter().map(|(_, reason)| format!("the broker takes no messages for now: {reason}"));
        let troubles = self.ways.iter().filter_map(|(log, way)| Some(format!("{log}: {}", way.trouble.as_ref()?)));
        let text = blocked.chain(troubles).collect::<Vec<_>>().join("; ");
        self.publisher.health.delivery(|delivery| delivery.trouble = Some(text).filter(|text| !text.is_empty()));
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
        if let State::Open(channel, _) = old {
            self.channels.push(Box::pin(async move {
                channel.close().await;
                Done::Closed
            }));
        }
        if !too_large {
            self.trouble(log, chain(&error), KEPT);
        }
        Ok(())
    }

    fn see_overdue(&mut self) -> Result<(), Error> {
        let limit = self.publisher.config.confirm_timeout;
        if self.blocked.is_some() {
            return Ok(());
        }
        let reason = format!("no confirm within {} s", limit.as_secs());
        match self.deliveries.overdue(Instant::now(), limit) {
            None => Ok(()),
            Some(Overdue::Everything) => Err(Error::Connection { reason: format!("{reason} for any message") }),
            Some(Overdue::Log(log)) => self.channel_ended(&log, Error::Channel { code: 0, reason }),
        }
    }

    /// Whether the end has come: nothing fresh is left and nothing is in flight, or the time for it is over.
    fn is_drained(&self) -> bool {
        let Some(until) = self.draining else { return false };
        let idle = |log: &Arc<str>| {
            let stuck = self.deliveries.is_gentle(log);
            stuck || (self.publisher.spool.offers(log).0.is_none() && self.deliveries.in_flight(log) == 0)
        };
        Instant::now() >= until || self.ways.keys().all(idle)
    }

    /// Sends what the window allows, the logs in turn, and opens channels where something waits for one.
    fn fill(&mut self) {
        for log in self.publisher.spool.logs() {
            let delays = || Delays::new(&self.publisher.retry);
            let new = || Way { state: State::Closed(None), era: 0, delays: delays(), held: None, trouble: None };
            self.ways.entry(log).or_insert_with(new);
        }
        if self.blocked.is_some() {
            return;
        }
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
                true
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
        let key = self.publisher.routing_key.of(log);
        let confirm = channel.publish(&self.publisher.config.exchange, &key, &taken.batch, taken.replayed);
        let (log, era) = (Arc::clone(log), way.era);
        self.answers.push(Box::pin(async move { Answered { log, era, tag, answer: confirm.await } }));
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
