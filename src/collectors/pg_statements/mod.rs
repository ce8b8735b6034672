//! Statements: which ones took the server's time since the look before, out of pg_stat_statements.
//!
//! All entries are looked at each time, without their texts, because only then a delta is true and nothing is missed
//! that ran in between; sent are the ones that took the most time since, and the sum of all others.
//!
//! The server tells only what changed. It is given the marks of all entries that are known, and answers with those that
//! bear another one and with how many there are. If that is not what it should be, some are gone, and all are read.
//!
//! The surprising thing: nothing here knows a version of PostgreSQL. A server that was upgraded keeps the columns of
//! the extension as it was created, and the extension may be in any schema.

pub mod counters;
pub mod delta;
pub mod entries;
mod find;
mod names;
mod row;
mod texts;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    CollectError, Collector, Context,
    sight::{self, Unreadable},
};
use crate::{
    event::Sample,
    postgres::{Cells, Error, Identity, Longs, Param, Session},
    settings::{Reader, Section},
    units::Time,
};
pub use counters::Counters;
use delta::{Before, Seen};
use entries::{Counted, Entries, Key};
use find::Extension;
use names::Names;
use row::row;
pub use row::{Row, Summary};
use texts::Texts;

const INFO: &str = include_str!("info.sql");
const COUNTERS: &str = include_str!("counters.sql");
const CHANGES: &str = include_str!("changes.sql");

/// How long an extension that is missing is not looked for again: a little less than a minute, so that a collector
/// that looks each minute does not miss its turn.
const LOOK_AGAIN: Duration = Duration::from_secs(55);

/// Keys of its own.
#[derive(Debug, Clone)]
pub struct Config {
    limit: u64,
    query_max_chars: u64,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        Self {
            limit: reader.key_in("limit", 100, 1..=100_000, "Rows at the most: those that took the most time since."),
            query_max_chars: reader.key_in(
                "query_max_chars",
                1000,
                1..=1_048_576,
                "Characters of a statement at the most; behind them stands ...[truncated].",
            ),
        }
    }
}

/// The collector.
#[derive(Debug)]
pub struct PgStatements {
    limit: usize,
    texts: Texts,
    /// Where the extension is, and on which server.
    extension: Option<(Identity, Extension)>,
    /// Since when it is missing, and what mends that.
    missing: Option<(Instant, String)>,
    before: Option<Arc<Seen>>,
}

impl Collector for PgStatements {
    const NAME: &'static str = "pg_statements";
    const IMPORTANCE: u8 = 1;
    type Config = Config;
    type Data = Vec<Row>;
    type Summary = Summary;

    fn new(config: Config) -> Self {
        Self {
            limit: usize::try_from(config.limit).unwrap_or(usize::MAX),
            texts: Texts::new(config.query_max_chars, config.limit),
            extension: None,
            missing: None,
            before: None,
        }
    }

    async fn collect(&mut self, context: &Context) -> Result<Sample<Vec<Row>, Summary>, CollectError> {
        let start = Instant::now();
        if let Some((since, what)) = &self.missing
            && since.elapsed() < LOOK_AGAIN
        {
            return Err(CollectError::Absent(what.clone()));
        }
        let mut session = context.postgres.session(Self::NAME).await?;
        let (extension, figures) = self.read(&mut session).await?;
        let identity = session.identity().clone();
        let epoch = figures.overall.epoch(&identity);
        let seen = self.before.clone();
        let before = Before::of(seen.as_deref(), &epoch);
        let entries = figures.count();
        let summary = |other| Summary {
            entries: entries as u64 + figures.hidden + figures.unreadable.count(),
            other,
            dealloc: before.dealloc(figures.overall.dealloc),
            stats_reset: figures.overall.stats_reset,
            interval_ms: before.interval_ms(session.clock()),
            baseline: before.is_baseline(),
            io_timing: figures.overall.io_timing,
            planning: figures.overall.planning,
        };
        let (kept, other) = delta::top(&figures.read, figures.unchanged(), before, self.limit);
        let summary = summary(other);
        let clock = session.clock();
        let keys: Vec<Key> = kept.iter().map(|(key, ..)| **key).collect();
        let names = Names::read(&mut session, &keys).await?;
        let texts = self.texts.learn(&keys, &mut session, &extension, &context.texts).await;
        let rows = kept.into_iter().map(|(key, counted, delta)| row(key, counted, delta, &names, self.texts.get(key)));
        let data: Vec<Row> = rows.collect();
        let degraded = sight::degraded(&identity, &figures.unreadable);
        let texts = texts.err().map(|error| format!("texts of statements could not be read: {error}"));
        let degraded: Vec<String> = degraded.into_iter().chain(texts).collect();
        let sample = Sample {
            server: Some(identity.server(epoch.clone())),
            collected_at: clock,
            duration: start.elapsed(),
            omitted: (entries - data.len()) as u64,
            hidden: figures.hidden,
            summary: Some(summary),
            data,
            degraded: Some(degraded.join("; ")).filter(|degraded| !degraded.is_empty()),
        };
        // Only the figures still hold what they bring up to date.
        drop(seen);
        self.before = None;
        self.before = Some(Arc::new(figures.seen(epoch, clock)));
        Ok(sample)
    }
}

impl PgStatements {
    /// Reads all entries, wherever the extension is now.
    async fn read(&mut self, session: &mut Session) -> Result<(Extension, Figures), CollectError> {
        if let Some(extension) = self.known(session.identity()) {
            match Figures::read(session, &extension, self.before.clone()).await {
                // It was updated, moved or dropped since.
                Err(error) if error.sqlstate().is_some() && !error.is_timeout() => self.extension = None,
                Ok(figures) if !extension.is_version(&figures.overall.version) => self.extension = None,
                other => return Ok((extension, other?)),
            }
        }
        match Extension::find(session).await {
            Err(CollectError::Absent(what)) => {
                self.missing = Some((Instant::now(), what.clone()));
                Err(CollectError::Absent(what))
            }
            found => {
                let extension = found?;
                self.missing = None;
                self.extension = Some((session.identity().clone(), extension.clone()));
                let figures = Figures::read(session, &extension, None).await?;
                Ok((extension, figures))
            }
        }
    }

    /// Where the extension was on this server.
    fn known(&self, identity: &Identity) -> Option<Extension> {
        let place = |identity: &Identity| (identity.system_identifier.clone(), identity.database.clone());
        let (found_on, extension) = self.extension.as_ref()?;
        (place(found_on) == place(identity)).then(|| extension.clone())
    }
}

/// What holds for all entries.
#[derive(Debug)]
struct Overall {
    /// Of the extension.
    version: String,
    dealloc: Option<u64>,
    stats_reset: Option<Time>,
    io_timing: bool,
    planning: bool,
}

impl Overall {
    /// The epoch of the counters: new after a reset of all and after a crash. A promotion and a clean restart keep
    /// the counters, and on 14 and later the epoch.
    fn epoch(&self, identity: &Identity) -> String {
        match (self.stats_reset, identity.checkpointer_start) {
            (Some(reset), _) => identity.epoch("statements", reset),
            (None, Some(start)) => identity.epoch("checkpointer", start),
            (None, None) => identity.epoch("postmaster", identity.postmaster_start),
        }
    }
}

/// All that one look knows of all entries.
#[derive(Debug)]
struct Figures {
    overall: Overall,
    /// Entries that were read.
    read: Entries,
    /// Where those are only what changed: what else there is.
    unchanged: Option<Arc<Seen>>,
    changed: usize,
    hidden: u64,
    unreadable: Unreadable,
}

impl Figures {
    /// Reads what is not known from `before`.
    async fn read(session: &mut Session, extension: &Extension, before: Option<Arc<Seen>>) -> Result<Self, Error> {
        // First, so that a reset in between shows as counters that fell, and never as an epoch that did not begin yet.
        let rows = session.query("pg_statements.info", &extension.fill(INFO), &[]).await?;
        let row = rows.first().ok_or(Error::Decode { column: "dealloc".into(), wanted: "one row" })?;
        let overall = Overall {
            version: row.get("version")?,
            dealloc: row.get("dealloc")?,
            stats_reset: row.get("stats_reset")?,
            io_timing: row.get("io_timing")?,
            planning: row.get("planning")?,
        };
        let epoch = overall.epoch(session.identity());
        let before = before.filter(|before| before.epoch == epoch);
        let mut figures = Self {
            overall,
            read: Entries::default(),
            unchanged: None,
            changed: 0,
            hidden: 0,
            unreadable: Unreadable::default(),
        };
        if !figures.read_changes(session, extension, before.as_ref()).await? {
            figures.read_all(session, extension, before.as_deref()).await?;
        }
        Ok(figures)
    }

    /// Entries that are what they were, but for those that were read.
    fn unchanged(&self) -> Option<&Entries> {
        self.unchanged.as_ref().map(|seen| &seen.entries)
    }

    /// How many there are.
    fn count(&self) -> usize {
        let again = |entries: &Entries| self.read.iter().filter(|(key, _)| entries.has(key)).count();
        self.read.len() + self.unchanged().map_or(0, |entries| entries.len() - again(entries))
    }

    /// Reads what changed since; false if that does not tell all.
    async fn read_changes(
        &mut self,
        session: &mut Session,
        extension: &Extension,
        before: Option<&Arc<Seen>>,
    ) -> Result<bool, Error> {
        let Some(before) = before.filter(|before| before.is_steady()) else { return Ok(false) };
        let (sql, marks) = (extension.fill(CHANGES), Param::Longs(Longs(before.entries.marks())));
        let rows = session.query("pg_statements.changes", &sql, &[marks]).await?;
        let row = rows.first().ok_or(Error::Decode { column: "entries".into(), wanted: "one row" })?;
        let changed: Result<Vec<_>, Error> = row.records("changed")?.iter().map(entry).collect();
        // Whatever is odd about a row, reading all tells.
        let Ok(changed) = changed else { return Ok(false) };
        self.changed = changed.len();
        changed.into_iter().flatten().for_each(|(key, mark, counted)| self.read.insert(key, mark, counted));
        self.unchanged = Some(Arc::clone(before));
        let there = usize::try_from(row.get::<u64>("entries")?).ok();
        let visible = usize::try_from(row.get::<u64>("visible")?).ok();
        Ok(there == visible && visible == Some(self.count()))
    }

    async fn read_all(
        &mut self,
        session: &mut Session,
        extension: &Extension,
        before: Option<&Seen>,
    ) -> Result<(), Error> {
        (self.read, self.unchanged) = (Entries::with_capacity(before.map_or(0, |seen| seen.entries.len())), None);
        let mut take = |row| match entry(&row) {
            Ok(Some((key, mark, counted))) => self.read.insert(key, mark, counted),
            Ok(None) => self.hidden += 1,
            Err(error) => self.unreadable.note(error),
        };
        session.each("pg_statements", &extension.fill(COUNTERS), &[], &mut take).await?;
        let marked = self.read.iter().zip(self.read.marks());
        self.changed = match before {
            Some(before) => marked.filter(|((key, _), mark)| before.entries.mark(key) != Some(**mark)).count(),
            // Nobody knows; the next look will.
            None => 0,
        };
        Ok(())
    }

    fn seen(self, epoch: String, clock: Time) -> Seen {
        let unchanged = self
            .unchanged
            .map(|seen| Arc::try_unwrap(seen).map_or_else(|seen| seen.entries.clone(), |seen| seen.entries));
        let entries = match unchanged {
            Some(mut entries) => {
                entries.extend(self.read);
                entries
            }
            None => self.read,
        };
        Seen {
            epoch,
            clock,
            complete: self.hidden == 0 && self.unreadable.count() == 0,
            dealloc: self.overall.dealloc,
            entries,
            changed: self.changed,
        }
    }
}

/// Reads an entry with its mark; `None` for one that the role may not see: it has no id.
fn entry(row: &impl Cells) -> Result<Option<(Key, i64, Counted)>, Error> {
    let Some(queryid) = row.cell(2)? else { return Ok(None) };
    let key = Key { userid: row.cell(0)?, dbid: row.cell(1)?, queryid, toplevel: row.cell(3)? };
    let behind = 5 + Counters::COLUMNS;
    let counted = Counted {
        since: row.cell(4)?,
        counters: Counters::read(row, 5)?,
        times: [row.cell(behind)?, row.cell(behind + 1)?, row.cell(behind + 2)?, row.cell(behind + 3)?],
    };
    Ok(Some((key, row.cell(behind + 4)?, counted)))
}
