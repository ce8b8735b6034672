//! The vigil: says again, ever more rarely, what is still wrong, since when, how much waits and how long the disk lasts; and
//! when it is over. What goes wrong is told at once where it goes wrong.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::supervisor;
use crate::{
    event::status::SpoolStatus,
    health::{Delivery, Health},
    spool::Spool,
    units::{self, Time},
};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);
/// What is younger does not count as a backlog.
const BACKLOG: Duration = Duration::from_secs(15);
/// When trouble that lasts is told again; then each hour.
const AGAIN: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(900)];
const HOUR: Duration = Duration::from_secs(3600);

/// One kind of trouble.
#[derive(Debug, Default)]
struct Vigil {
    since: Option<Instant>,
    /// How often it was told again.
    told: u32,
}

/// What is to be said now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It lasts for so long by now.
    Still(Duration),
    /// It is over, and lasted for so long.
    Over(Duration),
}

impl Vigil {
    fn look(&mut self, now: Instant, trouble: bool) -> Option<Word> {
        if !trouble {
            self.told = 0;
            return self.since.take().map(|since| Word::Over(now.saturating_duration_since(since)));
        }
        let lasts = now.saturating_duration_since(*self.since.get_or_insert(now));
        let hours = || HOUR * (self.told + 1).saturating_sub(u32::try_from(AGAIN.len()).unwrap_or(0));
        let next = usize::try_from(self.told).ok().and_then(|told| AGAIN.get(told).copied()).unwrap_or_else(hours);
        (lasts >= next).then(|| {
            self.told += 1;
            Word::Still(lasts)
        })
    }
}

/// Watches as long as the agent runs.
pub(super) async fn keep_vigil(spool: Arc<Spool>, health: Arc<Health>) {
    let (mut delivery, mut disk, mut backlog) = (Vigil::default(), Vigil::default(), false);
    let mut stuck = BTreeSet::new();
    let every = supervisor::alive_every().map_or(EVERY, |limit| limit.min(EVERY));
    loop {
        tokio::time::sleep(every).await;
        let (now, (_, told), status) = (Instant::now(), health.snapshot(), spool.glance().status);
        match delivery.look(now, told.troubled.is_some()) {
            Some(Word::Still(lasts)) => {
                let trouble = told.trouble.as_deref().unwrap_or("connected, and nothing is confirmed yet");
                let since = told.trouble_since.or(told.troubled);
                still("messages still do not get through", trouble, since, lasts, &status);
            }
            Some(Word::Over(lasted)) => {
                backlog = true;
                info!(
                    lasted = rounded(lasted),
                    waiting = status.messages,
                    "messages get through again; what waited follows behind what is fresh"
                );
            }
            None => {}
        }
        match disk.look(now, status.trouble.is_some()) {
            Some(Word::Still(lasts)) => {
                let trouble = status.trouble.as_deref().unwrap_or_default();
                still("what waits is still not safe", trouble, status.trouble_since, lasts, &status);
            }
            Some(Word::Over(lasted)) => info!(lasted = rounded(lasted), "what waits is safe again"),
            None => {}
        }
        see_loops(&health, &mut stuck, &told, &status);
        let old =
            |oldest: Time| Time::now().0.saturating_sub(oldest.0) > i64::try_from(BACKLOG.as_micros()).unwrap_or(0);
        if backlog && delivery.since.is_none() && !status.oldest_at.is_some_and(old) {
            backlog = false;
            info!("all that waited is delivered");
        }
    }
}

/// Tells of loops that are stuck, once each, and the service manager of how the agent is.
fn see_loops(health: &Health, stuck: &mut BTreeSet<&'static str>, told: &Delivery, status: &SpoolStatus) {
    let found = health.loops.stuck();
    for part in found.iter().filter(|found| !stuck.contains(found.part)) {
        let seconds = part.time.as_secs();
        error!(
            part = part.part,
            seconds, "a part of the agent is stuck on one thing: a disk that hangs, or a mistake of ours"
        );
    }
    let parts: BTreeSet<_> = found.iter().map(|found| found.part).collect();
    for part in stuck.difference(&parts) {
        info!(part, "goes on");
    }
    *stuck = parts;
    let waiting = status.messages;
    match (stuck.first(), told.trouble.as_deref().or(status.trouble.as_deref())) {
        (Some(part), _) => supervisor::stuck(&format!("{part} is stuck")),
        (None, Some(trouble)) => supervisor::alive(&format!("{waiting} messages wait: {trouble}")),
        (None, None) => supervisor::alive(&format!("collecting; {waiting} messages wait")),
    }
}

fn still(what: &str, trouble: &str, since: Option<Time>, lasts: Duration, status: &SpoolStatus) {
    let since = since.map(|since| since.to_string()).unwrap_or_default();
    let disk = status.lasts_s.map_or("it does not grow".into(), |seconds| {
        rounded(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    });
    warn!(
        trouble,
        since,
        lasts = rounded(lasts),
        waiting = status.messages,
        bytes = status.bytes,
        disk_lasts = disk,
        "{what}"
    );
}

/// As a person would say it: whole seconds, minutes, hours or days.
fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = match seconds {
        0..180 => 1,
        180..10_800 => 60,
        10_800..259_200 => 3600,
        _ => 86_400,
    };
    units::duration(Duration::from_secs(seconds / unit * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_lasts_is_told_ever_more_rarely_and_so_is_its_end() {
        let start = Instant::now();
        let mut vigil = Vigil::default();
        assert_eq!(vigil.look(start, false), None);
        let mut told = Vec::new();
        for second in (0..4 * 3600).step_by(5) {
            if let Some(Word::Still(lasts)) = vigil.look(start + Duration::from_secs(second), true) {
                told.push(lasts.as_secs());
            }
        }
        assert_eq!(told, [60, 300, 900, 3600, 7200, 10_800]);
        let end = start + Duration::from_secs(4 * 3600);
        assert_eq!(vigil.look(end, false), Some(Word::Over(Duration::from_secs(4 * 3600))));
        assert_eq!(vigil.look(end, false), None);
        assert_eq!(vigil.look(end, true), None, "new trouble begins anew");
        assert_eq!(vigil.look(end + Duration::from_secs(60), true), Some(Word::Still(Duration::from_secs(60))));
    }

    #[test]
    fn times_are_told_as_a_person_would() {
        for (seconds, text) in [(0, "0s"), (61, "61s"), (299, "4m"), (7_300, "121m"), (90_000, "25h"), (700_000, "8d")]
        {
            assert_eq!(rounded(Duration::from_secs(seconds)), text);
        }
    }
}
