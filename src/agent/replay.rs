//! Replay: the line without collectors, for a folder whose agent is gone. It delivers what waits, and ends with a status that
//! declares what that agent could not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Error, Line};
use crate::{
    config::Config,
    event::status::{self, Occasion},
    health::{Delivery, Health},
    spool::Spool,
};

/// How often it is looked how far it is.
const EVERY: Duration = Duration::from_millis(100);

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages that still wait.
    pub waiting: u64,
    /// Why nothing gets through, or not all.
    pub trouble: Option<String>,
}

/// How a replay ended.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// Messages that the broker confirmed, the status among them.
    pub delivered: u64,
    /// Messages that still wait: for the next replay.
    pub left: u64,
    /// Whether the closing status was confirmed.
    pub told: bool,
    /// Why it gave up, if it did.
    pub trouble: Option<String>,
}

/// Delivers what waits in the spool's folder. A broker that is away is waited for; one that confirms nothing of what it is
/// given for twice `amqp.confirm_timeout` ends it. Stopped, it can be begun again and goes on where it was.
///
/// # Errors
/// Why it cannot begin, or a part that ended by itself.
pub async fn replay(
    config: &Config,
    mut stop: watch::Receiver<bool>,
    mut tell: impl FnMut(&Progress),
) -> Result<Replayed, Error> {
    let mut config = config.clone();
    // What another host had room and time for is not to be thrown away here.
    (config.spool.max_bytes, config.spool.min_free, config.spool.max_age) = (u64::MAX, 0, Duration::MAX);
    // None of them looks at anything here.
    config.collectors.plans.iter_mut().for_each(|plan| plan.enabled = false);
    let mut line = Line::begin(&config, Arc::new(Health::default()), None)?;
    if let Some(trouble) = line.spool.trouble() {
        line.end(Instant::now()).await;
        return Err(Error::Folder(trouble));
    }
    let patience = config.amqp.confirm_timeout * 2;
    let end = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => End::Stopped,
        part = line.tasks.ended() => return Err(Error::Ended(part)),
        end = delivered(&line.spool, &line.health, patience, &mut tell) => end,
    };
    let mut told = false;
    if end != End::Stopped {
        line.say(Occasion::Replayed, &config.collectors.plans).await;
        told = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => false,
            part = line.tasks.ended() => return Err(Error::Ended(part)),
            told = confirmed(&line.spool, patience) => told,
        };
    }
    let (spool, health) = (Arc::clone(&line.spool), Arc::clone(&line.health));
    line.end(Instant::now() + config.agent.shutdown_timeout).await;
    let (_, delivery) = health.snapshot();
    let trouble = match end {
        End::Stuck(trouble) => Some(trouble),
        End::Delivered | End::Stopped => None,
    };
    Ok(Replayed { delivered: delivery.confirmed, left: spool.status().messages, told, trouble })
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Delivered,
    Stopped,
    Stuck(String),
}

/// Waits until nothing waits any more, or nothing of what is published is confirmed for so long.
async fn delivered(spool: &Spool, health: &Health, patience: Duration, tell: &mut impl FnMut(&Progress)) -> End {
    let (mut silence, mut looked) = (Silence::default(), Instant::now());
    // A connection that was just begun anew knows of no trouble yet.
    let mut why = None;
    loop {
        let waiting = spool.status().messages;
        let (_, delivery) = health.snapshot();
        let unreadable = || spool.trouble();
        let progress = Progress { waiting, trouble: delivery.trouble.clone().or_else(unreadable) };
        tell(&progress);
        if waiting == 0 {
            return End::Delivered;
        }
        let before = std::mem::replace(&mut looked, Instant::now());
        if delivery.confirmed > silence.confirmed {
            why = None;
        }
        why = progress.trouble.or(why);
        if silence.look(&delivery, looked.saturating_duration_since(before)) > patience {
            return End::Stuck(why.unwrap_or_else(|| "the broker confirms nothing".into()));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// How long the broker had something to confirm and confirmed nothing. Time without a connection is none of it.
#[derive(Debug, Default)]
struct Silence {
    confirmed: u64,
    published: u64,
    lasts: Duration,
}

impl Silence {
    /// Takes note of the time that passed, and gives how long it lasts by now.
    fn look(&mut self, delivery: &Delivery, passed: Duration) -> Duration {
        if delivery.confirmed > self.confirmed {
            *self = Self { confirmed: delivery.confirmed, published: delivery.published, lasts: Duration::ZERO };
        } else if delivery.node.is_some() && delivery.published > self.published {
            self.lasts += passed;
        }
        self.lasts
    }
}

/// Waits until the status is numbered and confirmed, for a bounded time.
async fn confirmed(spool: &Spool, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let is_confirmed = || {
        let numbered = spool.given(status::COLLECTOR) > 0;
        numbered && spool.messages(status::COLLECTOR) == 0
    };
    while !is_confirmed() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(EVERY).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_away_is_waited_for_and_a_silent_one_is_not() {
        let second = Duration::from_secs(1);
        let mut silence = Silence::default();
        let mut look = |connected, published, confirmed| {
            let node = Some("node".to_owned()).filter(|_| connected);
            let delivery = Delivery { published, confirmed, node, ..Delivery::default() };
            silence.look(&delivery, second)
        };
        for _ in 0..3600 {
            assert_eq!(look(false, 0, 0), Duration::ZERO, "it is away");
        }
        assert_eq!(look(true, 0, 0), Duration::ZERO, "it has nothing to confirm yet");
        assert_eq!(look(true, 4, 0), second);
        assert_eq!(look(true, 4, 0), second * 2);
        assert_eq!(look(false, 4, 0), second * 2, "away again");
        assert_eq!(look(true, 5, 0), second * 3);
        assert_eq!(look(true, 6, 2), Duration::ZERO, "it confirms");
        assert_eq!(look(true, 6, 2), Duration::ZERO, "and has nothing more");
        assert_eq!(look(true, 7, 2), second);
    }
}
