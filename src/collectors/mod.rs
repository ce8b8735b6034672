//! Collectors: each takes a look at one thing and brings home one sample.
//!
//! A collector is one file (and its `.sql`) and one line in [`ALL`]. Schedule, deadline, configuration section,
//! routing key, schema, `collect NAME` and its place in `agent_status` follow from it.
//!
//! A collector knows nothing of its schedule and of where its samples go: `agent` runs it.

pub mod agent_status;
pub mod pg_activity;
pub mod pg_locks;
pub mod pg_statements;
pub mod schedule;
pub mod sight;
pub mod system_metrics;

use std::{fmt, future::Future, ops::RangeInclusive, pin::Pin, sync::Arc, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;

use crate::{
    event::{Body, EncodeError, Event, Message, Payload, Sample, Server},
    health::Health,
    postgres,
    settings::{Reader, Section},
    text,
};

pub use agent_status::take as take_status;

/// Every collector there is, in the order in which `collect` shows them.
pub static ALL: &[Entry] = &[
    Entry::of::<pg_activity::PgActivity>(),
    Entry::of::<pg_statements::PgStatements>(),
    Entry::of::<pg_locks::PgLocks>(),
    Entry::of::<system_metrics::SystemMetrics>(),
    Entry::of::<agent_status::Status>(),
];

/// What every collector is and does.
pub trait Collector: Send + Sized + 'static {
    /// Its name: routing key, configuration section, folder in the spool.
    const NAME: &'static str;
    /// Its schema version: grows only when a field changes meaning or goes away.
    const VERSION: u32 = 1;
    /// How often it looks where nothing else is configured.
    const INTERVAL: Duration = Duration::from_secs(60);
    /// What goes first when the spool is full: the lowest.
    const IMPORTANCE: u8 = 2;
    /// Whether it can be turned off.
    const OPTIONAL: bool = true;
    /// Its own keys, beside `enabled` and `interval`.
    type Config: Section + Clone + Send + Sync + 'static;
    /// What a sample holds: a `Vec` of rows, or one map.
    type Data: Body + JsonSchema;
    /// What is told over all rows; [`NoSummary`](crate::event::NoSummary) where there is nothing.
    type Summary: Serialize + JsonSchema + Send + Sync;

    /// Made anew at each start of the agent.
    fn new(config: Self::Config) -> Self;

    /// Takes one look. Dropped in the middle of it when its deadline is over.
    fn collect(
        &mut self,
        context: &Context,
    ) -> impl Future<Output = Result<Sample<Self::Data, Self::Summary>, CollectError>> + Send;

    /// Makes the sample ready for the intake; events larger than `max_bytes` are split by rows.
    ///
    /// # Errors
    /// [`EncodeError`] where a value has no MessagePack form.
    fn payload(sample: Sample<Self::Data, Self::Summary>, max_bytes: usize) -> Result<Payload, EncodeError> {
        sample.encode(max_bytes).map(Payload::Events)
    }
}

/// What a collector may use.
#[derive(Debug, Clone)]
pub struct Context {
    /// The server that the agent sits beside.
    pub postgres: postgres::Database,
    /// What may leave the host of texts.
    pub texts: text::Policy,
    /// The state of all parts.
    pub health: Arc<Health>,
}

/// Why a look brought no sample.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Something that the agent needs is not there: not an error, and it says what mends it.
    #[error("{0}")]
    Absent(String),
    /// The server could not answer.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The sample has no MessagePack form.
    #[error("cannot encode the sample")]
    Encode(#[from] EncodeError),
}

/// One line of [`ALL`]: a collector without its type.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its schema version.
    pub version: u32,
    importance: u8,
    read: fn(&mut Reader) -> Plan,
    schema: fn(SchemaGenerator) -> Schema,
}

impl Entry {
    const fn of<C: Collector>() -> Self {
        Self {
            name: C::NAME,
            version: C::VERSION,
            importance: C::IMPORTANCE,
            read: Plan::read::<C>,
            schema: schema::<C>,
        }
    }

    /// The JSON Schema of this collector's message, descriptions and units included.
    pub fn schema(&self) -> Schema {
        // For what is written, not read: nil is never left out, so every field is required.
        let mut schema = (self.schema)(SchemaSettings::draft2020_12().for_serialize().into_generator());
        schema.insert("title".into(), format!("{}/{}", self.name, self.version).into());
        // What the type leaves open and is fixed for this collector's messages.
        let fixed = [
            ("/properties/collector", "const", self.name.into()),
            ("/properties/schema_version", "const", self.version.into()),
            ("/properties/seq", "minimum", 1.into()),
            ("/properties/events", "minItems", 1.into()),
        ];
        for (pointer, keyword, value) in fixed {
            if let Some(serde_json::Value::Object(field)) = schema.pointer_mut(pointer) {
                field.insert(keyword.into(), value);
            }
        }
        schema
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All collectors, the least important first: whose messages go when the spool is full.
pub fn by_importance() -> Vec<&'static str> {
    let mut entries: Vec<&Entry> = ALL.iter().collect();
    entries.sort_by_key(|entry| entry.importance);
    entries.into_iter().map(|entry| entry.name).collect()
}

fn schema<C: Collector>(generator: SchemaGenerator) -> Schema {
    generator.into_root_schema_for::<Message<'static, Vec<Event<C::Data, C::Summary>>>>()
}

/// A collector as the configuration wants it.
#[derive(Clone)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Its schema version.
    pub version: u32,
    /// Whether it runs.
    pub enabled: bool,
    /// How often it looks.
    pub interval: Duration,
    make: Arc<dyn Fn() -> Box<dyn Look> + Send + Sync>,
}

/// How often a collector may look: from ten times a second to once a week.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);

impl Plan {
    fn read<C: Collector>(reader: &mut Reader) -> Self {
        let enabled = reader.checked("enabled", true, "Whether this collector runs.", |enabled| match enabled {
            false if !C::OPTIONAL => Err("true: the proof that nothing is missing rests on it".into()),
            _ => Ok(()),
        });
        let interval = reader.key_in("interval", C::INTERVAL, INTERVALS, "How often it looks.");
        let config = C::Config::read(reader);
        let make = Arc::new(move || Box::new(Typed(C::new(config.clone()))) as Box<dyn Look>);
        Self { name: C::NAME, version: C::VERSION, enabled, interval, make }
    }

    /// The collector itself, made anew.
    pub fn make(&self) -> Box<dyn Look> {
        (self.make)()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("name", &self.name).field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// The `[collectors]` table: every collector as it is configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// In the order of [`ALL`].
    pub plans: Vec<Plan>,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        Self { plans: ALL.iter().map(|entry| reader.table(entry.name, entry.read)).collect() }
    }
}

/// A collector without its type: takes a look and brings home what can be put into a message.
pub trait Look: Send {
    /// Takes one look; events larger than `max_bytes` are split by rows.
    fn look<'a>(&'a mut self, context: &'a Context, max_bytes: usize) -> Looking<'a>;
}

/// A look under way.
pub type Looking<'a> = Pin<Box<dyn Future<Output = Result<Looked, CollectError>> + Send + 'a>>;

/// What a look brought.
#[derive(Debug)]
pub struct Looked {
    /// The server it was taken on.
    pub server: Option<Arc<Server>>,
    /// What it brought.
    pub payload: Payload,
    /// Why it is less than it could be.
    pub degraded: Option<String>,
}

struct Typed<C>(C);

impl<C: Collector> Look for Typed<C> {
    fn look<'a>(&'a mut self, context: &'a Context, max_bytes: usize) -> Looking<'a> {
        Box::pin(async move {
            let mut sample = self.0.collect(context).await?;
            let (server, degraded) = (sample.server.clone(), sample.degraded.take());
            Ok(Looked { server, degraded, payload: C::payload(sample, max_bytes)? })
        })
    }
}
