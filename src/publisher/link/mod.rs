//! One connection's life: a channel for each log, what is in flight on them, and what the broker says.

mod answers;
mod fill;
mod turns;

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Phase, Publisher, delivery::Deliveries, pace::Pace};
use crate::{
    amqp::{Channel, Confirmed, Connection, Error, Signal, Signals},
    backoff::Delays,
    spool::Taken,
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

/// How long a turn of the loop may take: it waits for nothing but the disk.
const TURNS: Duration = Duration::from_secs(30);

/// Looks that begin together end some hundredths of a second apart. A message that nothing is in flight before waits for so
/// long for others: sent one by one, each wakes the connection's thread, and each answer this one.
const GATHERING: Duration = Duration::from_millis(50);

/// What becomes of messages of a log that cannot be delivered now.
const KEPT: &str = "messages are kept in the spool and tried again";

/// One log's way to the broker.
struct Way {
    state: State,
    /// Its routing key.
    key: String,
    /// Counts channels: answers of an earlier one are of no interest.
    era: u64,
    /// When its channel was opened.
    opened: Instant,
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
    /// Outlives the connection: who goes gently is not forgotten with it.
    deliveries: &'a mut Deliveries,
    answers: Pending<Answered>,
    channels: Pending<Done>,
    pace: Pace,
    /// Since when the broker takes nothing, and what it said.
    blocked: Option<(Instant, String)>,
    /// Logs begin to be served in turn after this one.
    turn: usize,
    /// The broker allows fewer channels than there are logs: they take turns.
    scarce: bool,
    draining: Option<Instant>,
    confirmed: bool,
    /// Channels that are open, as it was told last.
    open: usize,
}

impl<'a> Link<'a> {
    pub(super) fn new(publisher: &'a Publisher, connection: Connection, deliveries: &'a mut Deliveries) -> Self {
        deliveries.begin_anew();
        Self {
            publisher,
            connection: Arc::new(connection),
            ways: BTreeMap::new(),
            deliveries,
            answers: FuturesUnordered::new(),
            channels: FuturesUnordered::new(),
            pace: Pace::new(publisher.replay_rate, Instant::now()),
            blocked: None,
            turn: 0,
            scarce: false,
            draining: None,
            confirmed: false,
            open: 0,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn serve(mut self, phase: &mut watch::Receiver<Phase>, delays: &mut Delays) -> End {
        let spool = Arc::clone(&self.publisher.spool);
        spool.set_live(Some(self.publisher.fresh_bytes()));
        let mut signals = self.connection.signals();
        let health = Arc::clone(&self.publisher.health);
        let at_work = || health.loops.at_work("publisher", TURNS);
        let mut work = at_work();
        let end = loop {
            self.see_phase(*phase.borrow_and_update());
            self.fill();
            self.tell_channels();
            drop(work);
            if self.is_drained() {
                break End::Drained;
            }
            let action = self.select(phase, &mut signals).await;
            work = at_work();
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

    /// Puts how many channels are open where it can be seen.
    fn tell_channels(&mut self) {
        let open = self.ways.values().filter(|way| matches!(way.state, State::Open(..))).count();
        if std::mem::replace(&mut self.open, open) != open {
            self.publisher.health.delivery(|delivery| delivery.channels = open);
        }
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
        let gathers = self.answers.is_empty() && self.draining.is_none();
        let ready = async {
            self.publisher.spool.ready.notified().await;
            if gathers {
                tokio::time::sleep(GATHERING).await;
            }
        };
        // Whatever comes first, what is ready is sent then: nothing is lost with the others.
        tokio::select! {
            Some(answered) = self.answers.next() => Action::Answered(answered),
            Some(done) = self.channels.next() => Action::Done(done),
            signal = signals.next() => Action::Signal(signal),
            () = ready => Action::Ready,
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
        let turn = self.scarce.then(|| Instant::now() + turns::TURN / 10);
        [pauses, overdue, pace, turn, self.draining].into_iter().flatten().min()
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
}
