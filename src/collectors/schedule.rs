//! A collector's schedule: when it looks, how long it may take, and what becomes of a look that fails.
//!
//! One loop for each collector, so that one that fails, hangs or panics delays no other.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

use super::{CollectError, Context, Looked, Plan};
use crate::{
    backoff::{self, Delays},
    batch::channel::{Item, Sender},
    health::State,
    spool::chain,
    units::Time,
};

/// How much longer than its deadline a look may seem to take before its loop counts as stuck.
const GRACE: Duration = Duration::from_secs(30);

/// How a collector is run.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The collector.
    pub plan: Plan,
    /// What it may use.
    pub context: Context,
    /// Where its samples go.
    pub samples: Sender,
    /// Larger events are split by rows.
    pub max_event_bytes: usize,
    /// How long one look may take.
    pub deadline: Duration,
    /// How long to wait after looks that failed.
    pub retry: backoff::Config,
}

impl Schedule {
    /// Looks again and again, at once for the first time, until `stop` says so.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let (mut look, mut delays) = (self.plan.make(), Delays::new(&self.retry));
        let mut due = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let started = due;
            let ok = match self.samples.slot() {
                None => {
                    self.skip(1);
                    true
                }
                Some(slot) => {
                    let next = started + self.plan.interval;
                    let at_work = self.context.health.loops.at_work(self.plan.name, self.deadline + GRACE);
                    let looking = AssertUnwindSafe(look.look(&self.context, self.max_event_bytes)).catch_unwind();
                    let looked = tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => return,
                        looked = timeout(self.deadline, looking) => looked,
                    };
                    drop(at_work);
                    match self.judge(looked) {
                        Outcome::Sample(looked) => {
                            let collector = (self.plan.name, self.plan.version);
                            let Looked { server, payload, .. } = looked;
                            slot.send(Item { collector, server, payload, next_due: Some(next) }).await;
                            true
                        }
                        Outcome::Nothing => true,
                        Outcome::Failed => false,
                        Outcome::Broken => {
                            look = self.plan.make();
                            false
                        }
                    }
                }
            };
            due = self.next(started, ok, &mut delays);
        }
    }

    /// The next time on the schedule that is not yet over; after a failure not before the backoff.
    fn next(&self, started: Instant, ok: bool, delays: &mut Delays) -> Instant {
        let now = Instant::now();
        let missed = now.saturating_duration_since(started).as_nanos() / self.plan.interval.as_nanos().max(1);
        let missed = u32::try_from(missed).unwrap_or(u32::MAX);
        if missed > 0 {
            self.skip(u64::from(missed));
        }
        let next = started + self.plan.interval.saturating_mul(missed.saturating_add(1));
        if ok {
            delays.reset();
            return next;
        }
        next.max(now + delays.next())
    }

    fn skip(&self, looks: u64) {
        self.context.health.collector(self.plan.name, |collector| collector.skipped += looks);
    }

    fn judge(
        &self,
        looked: Result<Result<Result<Looked, CollectError>, Panic>, tokio::time::error::Elapsed>,
    ) -> Outcome {
        // That the server is away concerns all collectors; its pool says it once for them.
        let away = matches!(&looked, Ok(Ok(Err(CollectError::Postgres(error)))) if error.is_away());
        let (outcome, state, reason) = match looked {
            Ok(Ok(Ok(mut looked))) => match looked.degraded.take() {
                None => (Outcome::Sample(looked), State::Ok, None),
                Some(reason) => (Outcome::Sample(looked), State::Degraded, Some(reason)),
            },
            Ok(Ok(Err(CollectError::Absent(reason)))) => (Outcome::Nothing, State::Degraded, Some(reason)),
            Ok(Ok(Err(error))) => (Outcome::Failed, State::Failing, Some(chain(&error))),
            Ok(Err(_)) => (Outcome::Broken, State::Failing, Some("the collector panicked and was begun anew".into())),
            Err(_) => {
                let reason = format!("the look did not finish within {} s", self.deadline.as_secs());
                (Outcome::Broken, State::Failing, Some(reason))
            }
        };
        let spent = self.context.postgres.spent(self.plan.name);
        self.context.health.collector(self.plan.name, |collector| {
            collector.runs += 1;
            collector.db_ms = spent.as_secs_f64() * 1e3;
            match &outcome {
                Outcome::Sample(_) => collector.last_success_at = Some(Time::now()),
                Outcome::Nothing => {}
                Outcome::Failed | Outcome::Broken => collector.failures += 1,
            }
            // Said once, not with every look.
            if (collector.state, &collector.reason) != (state, &reason) {
                match (&reason, state) {
                    (Some(reason), _) if away => debug!(collector = self.plan.name, ?state, reason),
                    (Some(reason), _) => warn!(collector = self.plan.name, ?state, reason),
                    (None, _) if collector.runs > 1 => info!(collector = self.plan.name, "well again"),
                    (None, _) => {}
                }
            }
            (collector.state, collector.reason) = (state, reason);
        });
        outcome
    }
}

type Panic = Box<dyn std::any::Any + Send>;

/// What became of a look.
enum Outcome {
    /// It brought a sample.
    Sample(Looked),
    /// There was nothing to look at, which is no error.
    Nothing,
    /// It failed.
    Failed,
    /// It did not end by itself: what it kept cannot be relied on.
    Broken,
}
