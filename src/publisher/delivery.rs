//! Delivery: what is in flight, and what an answer of the broker settles. Pure: no clock, no socket.
//!
//! Each log has a channel of its own, and its messages are answered in any order, several at once, or never. Two rules
//! keep an unroutable message from being taken for a delivered one: a return is matched by its `message_id`, not by the
//! confirm that brought it; and nothing is settled before all answers that are there were taken in. The library hands a
//! return to whichever confirm it completes next, which may be that of a younger message: so the answer that carries the
//! return is there as soon as the message's own is, but not necessarily looked at before it.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::{
    event::batch,
    spool::{Id, Taken},
};

/// Which way a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// From memory, for the first time.
    Fresh,
    /// It came back, or waited on disk.
    Waiting,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Confirmed and not returned.
    Delivered,
    /// No queue wanted it.
    Returned,
    /// The broker refused it.
    Refused,
}

/// A message whose fate is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The message.
    pub id: Id,
    /// Events in it.
    pub events: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// How long its answer took. Time in which the broker was blocked does not count.
    pub took: Duration,
}

/// Whose confirms take too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overdue {
    /// One log's, while the others' come, or while nobody else waits for any.
    Log(Arc<str>),
    /// Everybody's: the broker confirms nothing at all.
    Everything,
}

#[derive(Debug)]
struct Flight {
    id: Id,
    run_id: Uuid,
    events: u32,
    bytes: usize,
    lane: Lane,
    sent: Instant,
    /// What the answer was, and when it came.
    answer: Option<(bool, Instant)>,
    /// It came back.
    returned: bool,
}

#[derive(Debug, Default)]
struct Track {
    /// In the order of their tags, without a hole.
    flights: VecDeque<Flight>,
    /// The tag of the first of `flights`, less one.
    settled: u64,
    bytes: usize,
    confirmed: Option<Instant>,
    /// One message at a time, until one is delivered.
    gentle: bool,
}

/// What is in flight, counted: asked for with every message.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    messages: usize,
    fresh: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, flight: &Flight) {
        self.messages += 1;
        self.fresh += usize::from(flight.lane == Lane::Fresh);
        self.bytes += flight.bytes;
    }

    fn remove(&mut self, flight: &Flight) {
        self.messages -= 1;
        self.fresh -= usize::from(flight.lane == Lane::Fresh);
        self.bytes -= flight.bytes;
    }
}

/// Everything in flight.
#[derive(Debug)]
pub struct Deliveries {
    window: usize,
    window_bytes: usize,
    tracks: BTreeMap<Arc<str>, Track>,
    /// Over all tracks.
    load: Load,
    last: Option<Lane>,
    /// Some log was overdue, and nobody's confirm came since.
    silent: bool,
}

impl Deliveries {
    /// Nothing in flight; at most so many messages and bytes will be.
    pub fn new(window: usize, window_bytes: usize) -> Self {
        Self { window, window_bytes, tracks: BTreeMap::new(), load: Load::default(), last: None, silent: false }
    }

    /// The connection is begun anew: nothing is in flight, and who goes gently still does.
    pub fn begin_anew(&mut self) {
        let gentle = |track: Track| Track { gentle: track.gentle, ..Track::default() };
        self.tracks = std::mem::take(&mut self.tracks).into_iter().map(|(log, track)| (log, gentle(track))).collect();
        (self.load, self.last, self.silent) = (Load::default(), None, false);
    }

    fn track(&mut self, log: &Arc<str>) -> &mut Track {
        self.tracks.entry(Arc::clone(log)).or_default()
    }

    /// Messages in flight.
    pub fn count(&self) -> usize {
        self.load.messages
    }

    /// Whether a message of so many bytes fits. One log takes at most half of the window, so that one whose queue never
    /// confirms leaves the other half to the others; one message always fits.
    pub fn fits(&self, log: &Arc<str>, bytes: usize) -> bool {
        let (count, total) = self.tracks.get(log).map_or((0, 0), |track| (track.flights.len(), track.bytes));
        let gentle = self.tracks.get(log).is_some_and(|track| track.gentle);
        let most = if gentle { 1 } else { (self.window / 2).max(1) };
        let own = count < most && (count == 0 || total + bytes <= self.window_bytes / 2);
        let Load { messages, bytes: in_flight, .. } = self.load;
        own && messages < self.window && (messages == 0 || in_flight + bytes <= self.window_bytes)
    }

    /// Which lane is next where both have something: the one that has less in flight, so that what waits has half of the
    /// window; else in turn, fresh messages first.
    pub fn prefers(&self) -> Lane {
        match (self.load.fresh * 2).cmp(&self.load.messages) {
            Ordering::Greater => Lane::Waiting,
            Ordering::Equal if self.last == Some(Lane::Fresh) => Lane::Waiting,
            Ordering::Less | Ordering::Equal => Lane::Fresh,
        }
    }

    /// A message was handed to the log's channel; gives its tag there, from 1.
    pub fn sent(&mut self, log: &Arc<str>, taken: &Taken, lane: Lane, now: Instant) -> u64 {
        self.last = Some(lane);
        let batch = &taken.batch;
        let flight = Flight {
            id: taken.id,
            run_id: batch.run_id,
            events: batch.events,
            bytes: batch.body.len(),
            lane,
            sent: now,
            answer: None,
            returned: false,
        };
        self.load.add(&flight);
        let track = self.track(log);
        track.bytes += flight.bytes;
        track.flights.push_back(flight);
        track.settled + track.flights.len() as u64
    }

    /// The broker answered the message with this tag, and perhaps returned one meanwhile. Settles nothing yet.
    pub fn answered(&mut self, log: &Arc<str>, tag: u64, ack: bool, returned: Option<String>, now: Instant) {
        self.silent = false;
        let track = self.track(log);
        track.confirmed = Some(now);
        // An id that is not in flight is one from before the channel was begun anew.
        if let Some(returned) = returned {
            let is_it = |flight: &&mut Flight| batch::message_id(flight.run_id, log, flight.id.seq) == returned;
            track.flights.iter_mut().filter(is_it).for_each(|flight| flight.returned = true);
        }
        let index = tag.checked_sub(track.settled + 1).and_then(|index| usize::try_from(index).ok());
        if let Some(flight) = index.and_then(|index| track.flights.get_mut(index)) {
            flight.answer.get_or_insert((ack, now));
        }
    }

    /// Settles what is answered from the oldest on. Only after all answers that are there were [taken in](Self::answered).
    pub fn settle(&mut self, log: &Arc<str>) -> Vec<Settled> {
        let track = self.track(log);
        let answered = track.flights.iter().take_while(|flight| flight.answer.is_some()).count();
        let flights: Vec<Flight> = track.flights.drain(..answered).collect();
        track.settled += answered as u64;
        track.bytes -= flights.iter().map(|flight| flight.bytes).sum::<usize>();
        let outcome = |flight: &Flight| match flight.answer {
            _ if flight.returned => Outcome::Returned,
            Some((true, _)) => Outcome::Delivered,
            _ => Outcome::Refused,
        };
        let settled: Vec<Settled> = flights
            .iter()
            .map(|flight| Settled {
                id: flight.id,
                events: flight.events,
                outcome: outcome(flight),
                took: flight.answer.map_or(Duration::ZERO, |(_, at)| at.saturating_duration_since(flight.sent)),
            })
            .collect();
        if settled.iter().any(|settled| settled.outcome == Outcome::Delivered) {
            track.gentle = false;
        }
        for flight in &flights {
            self.load.remove(flight);
        }
        settled
    }

    /// The log's channel ended. Gives what was in flight on it, oldest first; the next one goes gently.
    pub fn end(&mut self, log: &Arc<str>) -> Vec<(Id, u32)> {
        let track = self.track(log);
        let flights = std::mem::take(&mut track.flights);
        *track = Track { gentle: true, confirmed: track.confirmed, ..Track::default() };
        for flight in &flights {
            self.load.remove(flight);
        }
        flights.into_iter().map(|flight| (flight.id, flight.events)).collect()
    }

    /// From now on one message of this log at a time, until one is delivered.
    pub fn go_gently(&mut self, log: &Arc<str>) {
        self.track(log).gentle = true;
    }

    /// Whether the log goes one message at a time.
    pub fn is_gentle(&self, log: &Arc<str>) -> bool {
        self.tracks.get(log).is_some_and(|track| track.gentle)
    }

    /// Messages of one log in flight.
    pub fn in_flight(&self, log: &Arc<str>) -> usize {
        self.tracks.get(log).map_or(0, |track| track.flights.len())
    }

    /// When the oldest unanswered message was sent.
    pub fn oldest(&self) -> Option<Instant> {
        self.unanswered().map(|(_, sent)| sent).min()
    }

    fn unanswered(&self) -> impl Iterator<Item = (&Arc<str>, Instant)> {
        self.tracks.iter().filter_map(|(log, track)| Some((log, track.flights.front()?.sent)))
    }

    /// Time spent blocked does not count: moves everything in flight on by so much.
    pub fn forgive(&mut self, blocked: Duration) {
        for flight in self.tracks.values_mut().flat_map(|track| &mut track.flights) {
            flight.sent += blocked;
        }
    }

    /// Whose oldest message waits longer than `limit` for its answer. A log that is named is to be begun anew.
    pub fn overdue(&mut self, now: Instant, limit: Duration) -> Option<Overdue> {
        let late = |sent: Instant| now.saturating_duration_since(sent) >= limit;
        let (log, sent) = self.unanswered().filter(|(_, sent)| late(*sent)).min_by_key(|(_, sent)| *sent)?;
        let log = Arc::clone(log);
        let others = || self.tracks.iter().filter(|(name, _)| **name != log);
        let others_confirm = others().any(|(_, track)| track.confirmed.is_some_and(|at| at >= sent));
        let others_wait = others().any(|(_, track)| track.flights.front().is_some_and(|flight| late(flight.sent)));
        // Logs rarely send at the same moment: on a broker that confirms nothing they are found late one after the other.
        let everything = (others_wait || self.silent) && !others_confirm;
        self.silent = true;
        Some(if everything { Overdue::Everything } else { Overdue::Log(log) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::batch::Batch, units::Time};

    fn taken(seq: u64, bytes: usize) -> Taken {
        let batch = Batch {
            agent: Uuid::nil(),
            run_id: Uuid::nil(),
            collector: "log".into(),
            seq,
            time: Time(0),
            events: 1,
            version: 1,
            zstd: false,
            body: vec![0; bytes],
        };
        Taken { id: Id { run: 1, seq }, batch: Arc::new(batch), replayed: false }
    }

    fn message_id(seq: u64) -> String {
        taken(seq, 0).batch.message_id()
    }

    struct Rig {
        deliveries: Deliveries,
        log: Arc<str>,
        now: Instant,
    }

    impl Rig {
        fn new(sent: u64) -> Self {
            let mut rig = Self { deliveries: Deliveries::new(256, 1 << 20), log: "log".into(), now: Instant::now() };
            for seq in 1..=sent {
                let tag = rig.deliveries.sent(&rig.log, &taken(seq, 10), Lane::Fresh, rig.now);
                assert_eq!(tag, seq);
            }
            rig
        }

        fn answer(&mut self, tag: u64, ack: bool, returned: Option<u64>) -> Vec<(u64, Outcome)> {
            self.deliveries.answered(&self.log, tag, ack, returned.map(message_id), self.now);
            self.settle()
        }

        fn settle(&mut self) -> Vec<(u64, Outcome)> {
            let settled = self.deliveries.settle(&self.log);
            settled.into_iter().map(|settled| (settled.id.seq, settled.outcome)).collect()
        }
    }

    #[test]
    fn only_what_is_answered_from_the_oldest_on_is_settled() {
        let mut rig = Rig::new(4);
        assert_eq!(rig.answer(2, true, None), []);
        assert_eq!(rig.answer(4, false, None), []);
        assert_eq!(rig.answer(1, true, None), [(1, Outcome::Delivered), (2, Outcome::Delivered)]);
        assert_eq!(rig.answer(3, true, None), [(3, Outcome::Delivered), (4, Outcome::Refused)]);
        assert_eq!(rig.deliveries.count(), 0);
    }

    #[test]
    fn a_return_on_another_messages_confirm_is_not_taken_for_a_delivery() {
        // Measured with RabbitMQ: a `multiple` ack completes confirms in any order, and the return goes with the first one.
        let mut rig = Rig::new(3);
        assert_eq!(rig.answer(2, true, None), []);
        assert_eq!(rig.answer(3, true, Some(2)), []);
        let want = [(1, Outcome::Delivered), (2, Outcome::Returned), (3, Outcome::Delivered)];
        assert_eq!(rig.answer(1, true, None), want);
    }

    #[test]
    fn a_return_that_came_with_a_younger_messages_confirm_is_seen_before_anything_is_settled() {
        // One `multiple` ack for three messages of which the second was returned: the third's confirm was completed first
        // and has the return, but the others' are looked at before it.
        let mut rig = Rig::new(3);
        for (tag, returned) in [(1, None), (2, None), (3, Some(2))] {
            rig.deliveries.answered(&rig.log, tag, true, returned.map(message_id), rig.now);
        }
        assert_eq!(rig.settle(), [(1, Outcome::Delivered), (2, Outcome::Returned), (3, Outcome::Delivered)]);
        assert_eq!(rig.settle(), []);
    }

    #[test]
    fn a_broker_that_confirms_nothing_is_left_even_if_nobody_waits_at_the_same_moment() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (limit, start, second) = (Duration::from_secs(30), Instant::now(), Duration::from_secs(1));
        let mut deliveries = Deliveries::new(4, 100);
        deliveries.sent(&a, &taken(1, 1), Lane::Fresh, start);
        deliveries.sent(&b, &taken(1, 1), Lane::Fresh, start + second);
        assert_eq!(deliveries.overdue(start + limit, limit), Some(Overdue::Log(a.clone())));
        deliveries.end(&a);
        deliveries.sent(&a, &taken(1, 1), Lane::Waiting, start + limit);
        assert_eq!(deliveries.overdue(start + limit + second, limit), Some(Overdue::Everything));
    }

    #[test]
    fn a_queue_that_never_confirms_never_costs_the_others_their_connection() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (limit, mut now) = (Duration::from_secs(30), Instant::now());
        let mut deliveries = Deliveries::new(4, 100);
        for round in 1..=5 {
            deliveries.sent(&a, &taken(1, 1), Lane::Waiting, now);
            deliveries.sent(&b, &taken(round, 1), Lane::Fresh, now + limit / 2);
            deliveries.answered(&b, round, true, None, now + limit / 2);
            assert_eq!(deliveries.settle(&b).len(), 1);
            now += limit;
            assert_eq!(deliveries.overdue(now, limit), Some(Overdue::Log(a.clone())), "round {round}");
            deliveries.end(&a);
        }
    }

    #[test]
    fn answers_twice_for_unknown_tags_and_for_ids_from_before_change_nothing() {
        let mut rig = Rig::new(2);
        assert_eq!(rig.answer(7, true, Some(99)), []);
        assert_eq!(rig.answer(0, true, None), []);
        assert_eq!(rig.answer(1, true, None), [(1, Outcome::Delivered)]);
        assert_eq!(rig.answer(1, false, None), []);
        assert_eq!(rig.answer(2, true, None), [(2, Outcome::Delivered)]);
    }

    #[test]
    fn a_channel_that_ended_gives_everything_back_and_begins_again_at_one() {
        let mut rig = Rig::new(3);
        assert_eq!(rig.answer(2, true, None), []);
        let back: Vec<u64> = rig.deliveries.end(&rig.log).into_iter().map(|(id, _)| id.seq).collect();
        assert_eq!(back, [1, 2, 3]);
        assert!(rig.deliveries.is_gentle(&rig.log));
        assert!(rig.deliveries.fits(&rig.log, 10));
        assert_eq!(rig.deliveries.sent(&rig.log, &taken(1, 10), Lane::Waiting, rig.now), 1);
        assert!(!rig.deliveries.fits(&rig.log, 10), "one at a time");
        assert_eq!(rig.answer(1, true, None), [(1, Outcome::Delivered)]);
        assert!(!rig.deliveries.is_gentle(&rig.log));
    }

    #[test]
    fn one_log_takes_half_of_the_window_and_one_message_always_fits() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let now = Instant::now();
        let mut deliveries = Deliveries::new(4, 100);
        assert!(deliveries.fits(&a, 5000));
        deliveries.sent(&a, &taken(1, 20), Lane::Fresh, now);
        assert!(!deliveries.fits(&a, 40), "more than half of the bytes");
        deliveries.sent(&a, &taken(2, 20), Lane::Fresh, now);
        assert!(!deliveries.fits(&a, 1), "more than half of the messages");
        assert!(deliveries.fits(&b, 60));
        assert!(!deliveries.fits(&b, 61), "more than all bytes");
    }

    #[test]
    fn fresh_goes_first_and_what_waits_has_half() {
        // Answered one by one, or all at once.
        for (window, answered) in [(1, 1), (2, 1), (8, 1), (8, 8)] {
            let log: Arc<str> = "log".into();
            let mut deliveries = Deliveries::new(window, 1 << 20);
            let mut lanes = Vec::new();
            for seq in 1..=64 {
                let lane = deliveries.prefers();
                lanes.push(lane);
                let tag = deliveries.sent(&log, &taken(seq, 1), lane, Instant::now());
                if deliveries.count() == window {
                    for oldest in 1..=answered {
                        deliveries.answered(&log, tag - window as u64 + oldest, true, None, Instant::now());
                    }
                    deliveries.settle(&log);
                }
            }
            let fresh = lanes.iter().filter(|lane| **lane == Lane::Fresh).count();
            assert_eq!((lanes[0], fresh), (Lane::Fresh, 32), "{window}, {answered} at once: {lanes:?}");
        }
    }

    #[test]
    fn a_queue_that_never_confirms_is_told_from_a_broker_that_never_does() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (limit, start) = (Duration::from_secs(30), Instant::now());
        let mut deliveries = Deliveries::new(4, 100);
        deliveries.sent(&a, &taken(1, 1), Lane::Fresh, start);
        assert_eq!(deliveries.overdue(start + limit / 2, limit), None);
        assert_eq!(deliveries.overdue(start + limit, limit), Some(Overdue::Log(a.clone())));
        deliveries.sent(&b, &taken(1, 1), Lane::Fresh, start);
        assert_eq!(deliveries.overdue(start + limit, limit), Some(Overdue::Everything));
        deliveries.answered(&b, 1, true, None, start + limit / 2);
        deliveries.settle(&b);
        deliveries.sent(&b, &taken(2, 1), Lane::Fresh, start);
        assert_eq!(deliveries.overdue(start + limit, limit), Some(Overdue::Log(a.clone())), "b's confirms come");
        deliveries.forgive(limit);
        assert_eq!(deliveries.overdue(start + limit, limit), None, "blocked time does not count");
    }
}
