//! One look of one collector at a real server, decoded.

use std::{collections::BTreeMap, sync::Arc};

use postgres_agent::{
    backoff,
    collectors::{self, CollectError, Context, Look},
    event::{Payload, Server},
    health::Health,
    postgres::{self, Database},
    settings::{Given, Origin, Raw, Reader},
};
use serde_json::Value;

/// What one look brought.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) server: Arc<Server>,
    pub(crate) event: Value,
    pub(crate) degraded: Option<String>,
}

impl Looked {
    /// The rows.
    pub(crate) fn rows(&self) -> &[Value] {
        self.event["data"].as_array().unwrap()
    }

    /// The row of a process, by the name of the column that holds its id.
    pub(crate) fn row(&self, column: &str, pid: i32) -> Option<&Value> {
        self.rows().iter().find(|row| row[column] == pid)
    }
}

/// A collector with a database of its own, which looks as often as it is asked.
pub(crate) struct Looker {
    look: Box<dyn Look>,
    pub(crate) context: Context,
}

fn reader(settings: &[(&str, &str)]) -> Reader {
    let given = |(path, text): &(&str, &str)| {
        let origin = Origin::Variable((*path).to_owned());
        ((*path).to_owned(), Given { raw: Raw::Text((*text).to_owned()), origin })
    };
    Reader::new(settings.iter().map(given).collect::<BTreeMap<_, _>>())
}

/// The database as the agent would see it with these settings.
pub(crate) fn database(settings: &[(&str, &str)]) -> Database {
    let mut reader = reader(settings);
    let config: postgres::Config = reader.section("postgres");
    let retry: backoff::Config = reader.section("retry");
    Database::new(&config, &retry).unwrap()
}

impl Looker {
    pub(crate) fn new(collector: &str, settings: &[(&str, &str)]) -> Self {
        let mut reader = reader(settings);
        let plans = reader.section::<collectors::Config>("collectors").plans;
        let plan = plans.iter().find(|plan| plan.name == collector).unwrap();
        let texts = reader.section("privacy");
        let context = Context { postgres: database(settings), texts, health: Arc::new(Health::default()) };
        Self { look: plan.make(), context }
    }

    pub(crate) async fn try_look(&mut self) -> Result<Looked, CollectError> {
        let (server, event, degraded) = self.event().await?;
        Ok(Looked { server: server.expect("the server is known"), event, degraded })
    }

    /// What a collector brings that asks no server, and what it missed.
    pub(crate) async fn look_at_host(&mut self) -> (Value, Option<String>) {
        let (server, event, degraded) = self.event().await.unwrap();
        assert_eq!(server, None);
        (event, degraded)
    }

    async fn event(&mut self) -> Result<(Option<Arc<Server>>, Value, Option<String>), CollectError> {
        let looked = self.look.look(&self.context, usize::MAX).await?;
        let Payload::Events(events) = looked.payload else { panic!("no status was asked for") };
        let [event] = events.as_slice() else { panic!("one event") };
        Ok((looked.server, rmp_serde::from_slice(event).unwrap(), looked.degraded))
    }

    pub(crate) async fn look(&mut self) -> Looked {
        self.try_look().await.unwrap_or_else(|error| panic!("the look failed: {error}"))
    }
}
