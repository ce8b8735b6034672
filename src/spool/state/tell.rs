//! Telling: what a status says of the spool, and what the mark file keeps of it.

use super::State;
use crate::{
    event::status::{Lost, PreviousRun, SpoolStatus, Waiting},
    spool::{
        Glance, Told,
        ledger::TOLD_AT_ONCE,
        log::Log,
        mark::{Body, Run},
    },
};

impl State {
    pub(super) fn body(&self) -> Body {
        let logs = |run: u64| {
            let marks = self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), log.mark(run)?)));
            marks.filter(|(_, mark)| mark.given > 0).collect()
        };
        let earlier = self.runs.iter().map(|(&run, &(id, told))| Run { counter: run, id, told, logs: logs(run) });
        let current = Run { counter: self.run, id: self.run_id, told: false, logs: logs(self.run) };
        Body {
            agent: self.agent,
            boot: self.boot.clone(),
            stopped: self.stopped,
            seen_ms: self.seen_ms(self.host.now()),
            runs: earlier.chain([current]).collect(),
            lost: self.lost.iter().cloned().collect(),
        }
    }

    pub(in crate::spool) fn status(&mut self) -> SpoolStatus {
        let (trouble, used, now) = (self.trouble(), self.used(), self.host.now());
        let room = self.allowed().saturating_sub(used).min(self.free(now).saturating_sub(self.config.min_free));
        self.outlook.note(now, used);
        SpoolStatus {
            messages: self.logs.values().map(Log::messages).sum(),
            bytes: self.logs.values().map(Log::bytes).sum(),
            oldest_at: self.logs.values().filter_map(Log::oldest_at).min(),
            trouble_since: self.outlook.since(trouble.is_some()),
            lasts_s: self.outlook.lasts(room).map(|lasts| lasts.as_secs_f64()),
            trouble,
        }
    }

    pub(in crate::spool) fn glance(&mut self) -> Glance {
        Glance {
            dir: self.config.dir.clone(),
            max_bytes: self.config.max_bytes,
            status: self.status(),
            given: self.logs.iter().map(|(name, log)| (name.to_string(), log.given())).collect(),
            losses: self.losses.clone(),
        }
    }

    pub(in crate::spool) fn told(&mut self) -> Told {
        let spool = self.status();
        let given = |log: &Log| Some(log.given()).filter(|given| *given > 0);
        let previous = |run: &u64| {
            let (id, _) = self.runs.get(run)?;
            let last = self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), log.runs.get(run)?.given)));
            let last_seq = last.filter(|(_, given)| *given > 0).collect();
            Some(PreviousRun { run_id: id.to_string(), last_seq })
        };
        Told {
            sent: self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), given(log)?))).collect(),
            spool,
            waiting: merged(self.logs.values().flat_map(Log::waiting).collect()),
            lost: self.lost.next(TOLD_AT_ONCE).map(Lost::from).collect(),
            previous_runs: self.previous.next(usize::MAX).filter_map(previous).collect(),
        }
    }
}

/// At most 64 ranges: neighbours of the same run and collector with the smallest gaps become one. Never left out.
fn merged(mut ranges: Vec<Waiting>) -> Vec<Waiting> {
    const MOST: usize = 64;
    ranges.sort();
    while ranges.len() > MOST {
        let gap = |pair: &[Waiting]| match pair {
            [one, other] if (&one.run_id, &one.collector) == (&other.run_id, &other.collector) => {
                Some(other.first_seq - one.last_seq)
            }
            _ => None,
        };
        let smallest = ranges.windows(2).enumerate().filter_map(|(index, pair)| Some((gap(pair)?, index))).min();
        // More runs and collectors than ranges: none is left out.
        let Some((_, index)) = smallest else { break };
        let last_seq = ranges.remove(index + 1).last_seq;
        if let Some(range) = ranges.get_mut(index) {
            range.last_seq = last_seq;
        }
    }
    ranges
}
