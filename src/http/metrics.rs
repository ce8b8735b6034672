//! Metrics of the agent itself, for Prometheus: names end in their base unit, counters in `_total`.
//!
//! Gathered when they are asked for. Labels are names of collectors, loops, states and reasons, all of which the agent
//! itself knows: their number is bounded whatever the database does.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::view::{Picture, View, age};
use crate::{event::status::Reason, health::State, spool::Glance};

/// Prometheus' own text format, which every scraper takes.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics as text.
pub(super) fn text(view: &View) -> String {
    let mut registry = Registry::with_prefix("postgres_agent");
    registry.register_collector(Box::new(Scrape::of(view)));
    let mut out = String::with_capacity(16 << 10);
    // A String takes all that is written.
    let _infallible = encode(&mut out, &registry);
    classic(&out)
}

/// OpenMetrics as the older text format: there a counter's description bears its whole name, and nothing marks the end.
fn classic(text: &str) -> String {
    let type_of = |line: &str| {
        line.strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
    };
    let counters: Vec<String> =
        text.lines().filter_map(type_of).filter(|(_, kind)| kind == "counter").map(|(name, _)| name).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|begin| Some((begin, line.strip_prefix(begin)?)));
        match described.and_then(|(begin, rest)| Some((begin, rest.split_once(' ')?))) {
            Some((begin, (name, rest))) if counters.iter().any(|counter| counter == name) => {
                out.extend([begin, name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// What one scrape tells.
struct Scrape {
    picture: Picture,
    uptime_s: f64,
    healthy: bool,
    ready: bool,
    busy: Vec<(&'static str, f64)>,
    channel: (usize, usize),
}

impl Scrape {
    fn of(view: &View) -> Self {
        let picture = view.picture();
        Self {
            uptime_s: view.health.uptime().as_secs_f64(),
            healthy: view.health().ok,
            ready: view.ready().ok,
            busy: view.health.loops.busy().into_iter().map(|(part, time)| (part, time.as_secs_f64())).collect(),
            channel: (view.channel.samples(), view.channel.capacity()),
            picture,
        }
    }
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(&mut encoder);
        self.agent(&mut page)?;
        self.collectors(&mut page)?;
        self.spool(&mut page)?;
        self.delivery(&mut page)
    }
}

impl Scrape {
    fn agent(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        page.gauges("build_info", "The agent's version; always 1.", [([("version", env!("CARGO_PKG_VERSION"))], 1.0)])?;
        let now = age(crate::units::Time(0));
        page.gauge("start_time_seconds", "When this run began, in seconds since 1970.", now - self.uptime_s)?;
        page.gauge("healthy", "Whether all loops turn, as /healthz says it.", flag(self.healthy))?;
        page.gauge("ready", "Whether PostgreSQL and the broker are reached, as /readyz says it.", flag(self.ready))?;
        let busy = self.busy.iter().map(|(part, seconds)| ([("loop", *part)], *seconds));
        page.gauges(
            "loop_busy_seconds",
            "For how long a loop works on one thing by now; 0 while it waits for work.",
            busy,
        )?;
        let usage = &self.picture.usage;
        if let (Some(rss), Some(cpu)) = (usage.rss_bytes, usage.cpu_s) {
            page.gauge("resident_memory_bytes", "Resident memory.", rss as f64)?;
            page.counter("cpu_seconds", "Processor time, user and system.", cpu)?;
        }
        let database = &self.picture.current.database;
        let reached = database.is_reached() == Some(true);
        page.gauge("database_reachable", "Whether the last try to log in to PostgreSQL was answered.", flag(reached))?;
        page.gauge("database_connections", "Connections to PostgreSQL.", database.connections() as f64)?;
        page.gauge("channel_samples", "Samples between collectors and intake.", self.channel.0 as f64)?;
        page.gauge("channel_capacity_samples", "How many of them there may be.", self.channel.1 as f64)
    }

    fn collectors(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let of = |value: fn(&crate::health::CollectorStatus) -> f64| {
            self.picture.collectors.iter().map(move |(name, status)| ([("collector", name.as_str())], value(status)))
        };
        page.counters("collector_runs", "Looks, failed ones included.", of(|status| status.runs as f64))?;
        page.counters("collector_failures", "Looks that failed.", of(|status| status.failures as f64))?;
        let skips = "Looks left out because the one before took too long or the channel was full.";
        page.counters("collector_skips", skips, of(|status| status.skipped as f64))?;
        let database = "Time that the database spent on a collector's statements, as the agent saw it.";
        page.counters("collector_database_seconds", database, of(|status| status.db_ms / 1e3))?;
        let success = self.picture.collectors.iter().filter_map(|(name, status)| {
            Some(([("collector", name.as_str())], status.last_success_at?.0 as f64 / 1e6))
        });
        page.gauges("collector_last_success_timestamp_seconds", "When a look last brought a sample.", success)?;
        let states = [
            (State::Ok, "ok"),
            (State::Degraded, "degraded"),
            (State::Failing, "failing"),
            (State::Disabled, "disabled"),
        ];
        let states = self.picture.collectors.iter().flat_map(|(name, status)| {
            states.map(|(state, word)| ([("collector", name.as_str()), ("state", word)], flag(status.state == state)))
        });
        page.gauges("collector_state", "How a collector is: 1 for the state that it is in.", states)?;
        let plans = &self.picture.current.plans;
        let intervals = plans.iter().map(|plan| ([("collector", plan.name)], plan.interval.as_secs_f64()));
        page.gauges("collector_interval_seconds", "How often a collector looks.", intervals)?;
        let numbered = plans.iter().map(|plan| ([("collector", plan.name)], self.picture.numbered(plan.name) as f64));
        page.counters(
            "numbered_messages",
            "Messages that were given a number: each is delivered, waits, or is lost.",
            numbered,
        )
    }

    fn spool(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let Glance { max_bytes, status, losses, .. } = &self.picture.spool;
        page.gauge(
            "spool_messages",
            "Messages neither confirmed nor declared lost, those in flight included.",
            status.messages as f64,
        )?;
        page.gauge("spool_bytes", "Bytes of segment files.", status.bytes as f64)?;
        page.gauge("spool_limit_bytes", "spool.max_bytes.", *max_bytes as f64)?;
        let oldest = status.oldest_at.map_or(0.0, age);
        page.gauge("spool_oldest_age_seconds", "Age of the oldest message that waits; 0 if none does.", oldest)?;
        if let Some(lasts) = status.lasts_s {
            page.gauge(
                "spool_lasts_seconds",
                "Until the spool is full if it grows on like this; not there while it does not.",
                lasts,
            )?;
        }
        let troubled = flag(status.trouble.is_some());
        page.gauge("spool_troubled", "Whether the disk does not take messages: they are in memory only.", troubled)?;
        let lost: Vec<_> = losses
            .iter()
            .map(|((collector, reason), messages)| (collector.as_str(), reason_name(*reason), *messages))
            .collect();
        let lost = lost
            .iter()
            .map(|(collector, reason, messages)| ([("collector", *collector), ("reason", *reason)], *messages as f64));
        page.counters("lost_messages", "Messages declared lost in this run.", lost)
    }

    fn delivery(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let delivery = &self.picture.delivery;
        page.gauge("broker_connected", "Whether a connection to the broker stands.", flag(delivery.node.is_some()))?;
        page.gauge("broker_channels", "Channels that are open on it.", delivery.channels as f64)?;
        page.counter(
            "broker_reconnects",
            "Connections to the broker after the first one.",
            delivery.reconnects as f64,
        )?;
        page.counter(
            "published_messages",
            "Messages handed to the broker, repeated ones each time.",
            delivery.published as f64,
        )?;
        page.counter(
            "confirmed_messages",
            "Messages that the broker confirmed and did not return.",
            delivery.confirmed as f64,
        )?;
        page.counter(
            "returned_messages",
            "Messages that came back because no queue wanted them.",
            delivery.returned as f64,
        )?;
        page.counter("nacked_messages", "Messages that the broker refused.", delivery.nacked as f64)?;
        let troubled = flag(delivery.trouble.is_some());
        page.gauge("delivery_troubled", "Whether messages do not get through, as far as the agent knows.", troubled)?;
        let (count, total) = (delivery.confirms.count(), delivery.confirms.total().as_secs_f64());
        let buckets: Vec<(f64, u64)> = delivery.confirms.buckets().collect();
        page.histogram("confirm_seconds", "How long confirmed messages waited for it.", (total, count), &buckets)
    }
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Evicted => "evicted",
        Reason::Aged => "aged",
        Reason::Discarded => "discarded",
        Reason::Damaged => "damaged",
        Reason::Missing => "missing",
        Reason::TooLarge => "too_large",
        Reason::DiskFull => "disk_full",
        Reason::Power => "power",
    }
}

/// What is being written.
struct Page<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Page<'_, '_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstGauge::new(0.0).metric_type())?;
        values.into_iter().try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstCounter::new(0.0).metric_type())?;
        values
            .into_iter()
            .try_for_each(|(labels, value)| ConstCounter::new(value).encode(family.encode_family(&labels)?))
    }

    fn histogram(&mut self, name: &str, help: &str, (sum, count): (f64, u64), buckets: &[(f64, u64)]) -> fmt::Result {
        let kind = prometheus_client::metrics::MetricType::Histogram;
        let mut histogram = self.0.encode_descriptor(name, help, None, kind)?;
        histogram.encode_histogram::<[(&str, &str); 0]>(sum, count, buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_described_under_its_whole_name_in_the_older_format() {
        let new = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total 1\n# HELP a_b_c More.\n# TYPE a_b_c gauge\na_b_c 2.0\n\
                   # HELP a_s S.\n# TYPE a_s gauge\n# UNIT a_s seconds\na_s 1\n# EOF\n";
        let old = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total 1\n# HELP a_b_c More.\n# TYPE a_b_c gauge\n\
                   a_b_c 2.0\n# HELP a_s S.\n# TYPE a_s gauge\na_s 1\n";
        assert_eq!(classic(new), old);
    }
}
