//! Messages as any consumer meets them: properties, headers and their types, and what a start looks like from outside.

use std::{collections::BTreeMap, path::Path, time::Duration};

use lapin::{
    message::BasicGetMessage,
    options::{BasicAckOptions, BasicGetOptions},
    types::AMQPValue,
};
use serde_json::Value;

use crate::rig::{
    Folder,
    agent::Agent,
    postgres::{self, Role},
    rabbit::{self, Broker},
    wait_for_async,
};

const BOUND: Duration = Duration::from_secs(30);

fn config(postgres: &str, amqp: &str, spool: &Path, exchange: &str) -> String {
    format!(
        "postgres.url = '{postgres}'\namqp.url = '{amqp}'\namqp.exchange = '{exchange}'\nspool.dir = '{}'\n\
         spool.min_free = '0'\n[collectors]\npg_activity.interval = '200ms'\npg_locks.interval = '200ms'\n\
         system_metrics.interval = '200ms'\nagent_status.interval = '200ms'\n",
        spool.display()
    )
}

/// Takes everything out of a queue.
async fn take_all(broker: &Broker, queue: &str) -> Vec<BasicGetMessage> {
    let (connection, channel) = broker.channel().await;
    let mut messages = Vec::new();
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        message.ack(BasicAckOptions::default()).await.unwrap();
        messages.push(message);
    }
    connection.close(200, "done".into()).await.unwrap();
    messages
}

fn header(message: &BasicGetMessage, name: &str) -> AMQPValue {
    let headers = message.properties.headers().as_ref().expect("headers");
    headers.inner().get(name).unwrap_or_else(|| panic!("header {name}")).clone()
}

fn text(message: &BasicGetMessage, name: &str) -> String {
    match header(message, name) {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{name} is {other:?}, no string"),
    }
}

fn seq(message: &BasicGetMessage) -> u64 {
    match header(message, "seq") {
        AMQPValue::LongLongInt(seq) => seq.try_into().unwrap(),
        other => panic!("seq is {other:?}, not signed 64"),
    }
}

fn body(message: &BasicGetMessage) -> Value {
    rmp_serde::from_slice(&message.data).unwrap()
}

/// What the statuses among some messages say, in their order.
fn statuses(messages: &[BasicGetMessage]) -> Vec<Value> {
    let statuses = messages.iter().filter(|message| text(message, "collector") == "agent_status");
    statuses.map(|message| body(message)["events"][0]["data"].clone()).collect()
}

/// Everything that the contract says of one message from outside, and its routing key.
#[track_caller]
fn check(message: &BasicGetMessage) -> String {
    let (properties, body) = (&message.properties, body(message));
    let string = |text: &Option<lapin::types::ShortString>| text.as_ref().map(ToString::to_string);
    let (run, collector) = (text(message, "run_id"), text(message, "collector"));
    assert_eq!(string(properties.content_type()).as_deref(), Some("application/vnd.msgpack"));
    assert_eq!(string(properties.content_encoding()), None);
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(string(properties.message_id()), Some(format!("{run}/{collector}/{}", seq(message))));
    assert_eq!(string(properties.app_id()).as_deref(), Some("postgres-agent"));
    assert_eq!(string(properties.kind()), Some(format!("{collector}/{}", body["schema_version"])));
    assert!(
        properties.timestamp().is_some_and(|seconds| (1_700_000_000..10_000_000_000).contains(&seconds)),
        "seconds"
    );
    let events = body["events"].as_array().unwrap().len();
    assert_eq!(header(message, "events"), AMQPValue::LongInt(events.try_into().unwrap()));
    for (name, header) in [("agent_id", text(message, "agent_id")), ("run_id", run), ("collector", collector.clone())] {
        assert_eq!(body[name], header, "{name}");
    }
    assert_eq!((&body["seq"], message.routing_key.as_str()), (&seq(message).into(), collector.as_str()));
    collector
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_run_is_whole_on_the_wire_and_nothing_of_it_is_replayed() {
    const QUEUE: &str = "wire";
    let (server, broker, folder) = (postgres::shared(15), rabbit::shared(), Folder::new("wire"));
    broker.durable_queue(QUEUE, QUEUE).await;
    let config = config(&server.url(Role::Agent), &broker.url(), &folder.path().join("spool"), QUEUE);
    let agent = Agent::start(folder.path(), &config);
    wait_for_async("a dozen messages", BOUND, async || (broker.ready_messages(QUEUE).await >= 12).then_some(())).await;
    assert!(agent.stop(BOUND).0.success());

    let messages = take_all(broker, QUEUE).await;
    let mut seqs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in &messages {
        seqs.entry(check(message)).or_default().push(seq(message));
        assert_eq!(header(message, "replayed"), AMQPValue::Boolean(false), "{:?}", message.properties.message_id());
    }
    for (collector, seqs) in &seqs {
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{collector}: {seqs:?}");
    }
    let statuses = statuses(&messages);
    let last = statuses.last().unwrap();
    assert_eq!((&statuses[0]["event"], &last["event"]), (&"started".into(), &"stopping".into()));
    let sent: BTreeMap<String, u64> = seqs.iter().map(|(name, seqs)| (name.clone(), seqs.len() as u64)).collect();
    assert_eq!(last["sent"], serde_json::json!(sent), "the last status counts itself and all else");
    // Several looks travel together where the next one is due before the batch is too old.
    assert!(messages.iter().any(|message| body(message)["events"].as_array().unwrap().len() > 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_usable_spool_nothing_is_lost_while_the_broker_is_there() {
    const QUEUE: &str = "diskless";
    let (broker, folder) = (rabbit::shared(), Folder::new("diskless"));
    broker.durable_queue(QUEUE, QUEUE).await;
    let config = config("host=127.0.0.1 port=1 user=u", &broker.url(), Path::new("/proc/sys/spool"), QUEUE);
    let agent = Agent::start(folder.path(), &config);
    wait_for_async("some messages", BOUND, async || (broker.ready_messages(QUEUE).await >= 5).then_some(())).await;
    assert!(agent.stop(BOUND).0.success());

    let statuses = statuses(&take_all(broker, QUEUE).await);
    assert_eq!(statuses.first().map(|status| status["event"].clone()), Some("started".into()));
    for status in &statuses {
        assert_eq!((&status["lost"], status["spool"]["trouble"].is_string()), (&Value::Array(Vec::new()), true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_told_in_one_line_and_in_each_status() {
    const QUEUE: &str = "away";
    let (broker, folder) = (rabbit::shared(), Folder::new("away"));
    broker.durable_queue(QUEUE, QUEUE).await;
    let config = config("host=127.0.0.1 port=1 user=u", &broker.url(), &folder.path().join("spool"), QUEUE);
    let agent = Agent::start(folder.path(), &(config + "[retry]\ninitial = '10ms'\nmax = '50ms'\n"));
    let status = wait_for_async("ten looks that failed", BOUND, async || {
        let statuses = statuses(&take_all(broker, QUEUE).await);
        statuses.into_iter().find(|status| status["collectors"]["pg_locks"]["failures"].as_u64() >= Some(10))
    })
    .await;
    let locks = &status["collectors"]["pg_locks"];
    assert_eq!(locks["state"], "failing");
    assert!(locks["reason"].as_str().is_some_and(|reason| reason.contains("127.0.0.1:1: ")), "{locks}");
    let log = agent.log();
    assert_eq!(log.lines().filter(|line| line.contains("127.0.0.1:1: ")).count(), 1, "{log}");
}
