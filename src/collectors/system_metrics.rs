//! system_metrics

use schemars::JsonSchema;
use serde::Serialize;

use super::{CollectError, Collector, Context};
use crate::{
    event::{NoSummary, Sample},
    settings::{Reader, Section},
};

/// Configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Rows at the most.
    pub limit: u64,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        Self { limit: reader.key_in("limit", 100, 1..=100_000, "Rows at the most.") }
    }
}

/// One row.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {}

/// The collector.
#[derive(Debug)]
pub struct SystemMetrics {
    config: Config,
}

impl Collector for SystemMetrics {
    const NAME: &'static str = "system_metrics";
    const IMPORTANCE: u8 = 0;
    type Config = Config;
    type Data = Vec<Row>;
    type Summary = NoSummary;

    fn new(config: Config) -> Self {
        Self { config }
    }

    async fn collect(&mut self, _context: &Context) -> Result<Sample<Vec<Row>, NoSummary>, CollectError> {
        Err(CollectError::Absent(format!("not built yet ({})", self.config.limit)))
    }
}
