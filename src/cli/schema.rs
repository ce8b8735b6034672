//! `schema`: what a message looks like, as JSON Schema, made from the very types that are sent.

use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value};

use super::{Failure, Outcome, say};
use crate::{collectors, config::Loaded};

/// Print the JSON Schema of a message: one collector's, or an object with all of them
///
/// It describes the decoded MessagePack. Its descriptions say what each field means and in which unit.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The collector; left out: an object with the schema of each one under its name
    #[arg(value_parser = PossibleValuesParser::new(collectors::ALL.iter().map(|entry| entry.name)))]
    collector: Option<String>,
}

impl Arguments {
    pub(super) fn run(self, _: &Loaded) -> Outcome {
        let schemas = collectors::ALL.iter().map(|entry| (entry.name.to_owned(), entry.schema().to_value()));
        let value = match self.collector {
            Some(name) => {
                schemas.into_iter().find(|(known, _)| *known == name).map_or(Value::Null, |(_, schema)| schema)
            }
            None => Value::Object(schemas.collect::<Map<_, _>>()),
        };
        let text = serde_json::to_string_pretty(&value).map_err(|error| Failure::Failed(error.to_string()))?;
        say(&(text + "\n"))
    }
}
