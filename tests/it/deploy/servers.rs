//! The role of PostgreSQL, and the exchange, queue and users of RabbitMQ, as they are to be made.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use serde_json::Value;

use super::{file, read, yaml};
use crate::rig::{
    Folder,
    agent::{Agent, command},
    must,
    postgres::{Role, Server},
    rabbit::{self, Broker},
    wait_for_async,
};

const BOUND: Duration = Duration::from_secs(60);
const QUEUE: &str = "postgres-agent.messages";

#[test]
fn the_role_of_postgres_sql_is_all_that_the_agent_needs_on_the_oldest_and_the_newest_server() {
    for version in [13, 18] {
        let server = Server::private(version);
        server.sql("DROP EXTENSION pg_stat_statements");
        for _ in 0..2 {
            let told = run(&server);
            assert_eq!(told, "", "{version}");
        }
        let limits = "SELECT rolconnlimit, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'postgres_agent'";
        assert_eq!(server.sql(limits), "3|f|f");
        let folder = Folder::new("role");
        let config = format!(
            "postgres.url = 'postgresql://postgres_agent@127.0.0.1:{}/postgres'\namqp.url = '{}'\nspool.dir = '{}'\n\
             amqp.exchange = 'deploy'\nspool.min_free = '0'\nhttp.listen = ''\n",
            server.port(),
            rabbit::shared().url(),
            folder.path().join("spool").display()
        );
        let path = folder.path().join("agent.toml");
        fs::write(&path, config).unwrap();
        let output = command(["check", "--json", "--config"]).arg(path).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !found.contains("failure"), "{version}: {found}");
        // A server of the tests keeps the defaults, of which some are worth a warning; none is about rights.
        assert!(!found.lines().any(|line| line.contains("warning") && line.contains("GRANT")), "{version}: {found}");
    }
}

#[test]
fn a_server_that_does_not_load_the_extension_is_told() {
    let server = Server::with_settings(18, "shared_preload_libraries = ''");
    assert!(run(&server).contains("add it to shared_preload_libraries"));
}

/// Runs postgres.sql as the superuser; returns what it said beside its results.
fn run(server: &Server) -> String {
    let output = server.psql(Role::Postgres, "postgres").arg("-f").arg(file("postgres.sql")).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    told
}

/// A broker of the test's own with what rabbitmq.json holds, and passwords.
fn prepared() -> Broker {
    let broker = Broker::private();
    let folder = Folder::new("definitions");
    let path = folder.path().join("rabbitmq.json");
    fs::write(&path, read("rabbitmq.json")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let path = path.to_str().unwrap();
    broker.ctl(&["import_definitions", path]);
    broker
}

async fn login(broker: &Broker, user: &str, password: &str) -> lapin::Result<Channel> {
    let url = format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", broker.port());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    connection.create_channel().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rabbitmq_json_the_agent_delivers_into_its_queue_and_may_do_nothing_else() {
    let broker = prepared();
    for user in ["postgres-agent", "postgres-agent-consumer"] {
        assert!(login(&broker, user, "").await.is_err(), "{user} has no password yet");
        broker.ctl(&["change_password", user, "hunter2"]);
    }
    let server = crate::rig::postgres::shared(18);
    let folder = Folder::new("definitions");
    let config = |user: &str| {
        format!(
            "amqp.url = 'amqp://{user}:hunter2@127.0.0.1:{}/%2f'\namqp.declare = false\npostgres.url = '{}'\n\
             spool.dir = '{}'\nspool.min_free = '0'\nhttp.listen = ''\ncollectors.agent_status.interval = '200ms'\n",
            broker.port(),
            server.url(Role::Agent),
            folder.path().join("spool").display()
        )
    };
    let agent = Agent::start(folder.path(), &config("postgres-agent"));
    wait_for_async("it delivers", BOUND, async || (broker.ready_messages(QUEUE).await >= 5).then_some(())).await;
    assert!(agent.stop(BOUND).0.success());

    // The consumer sees all of it, and proves it, with no right but to read its queue.
    let path = folder.path().join("consumer.toml");
    fs::write(&path, config("postgres-agent-consumer")).unwrap();
    let mut tap = command(["tap", "--audit", "--queue", QUEUE, "--config"]);
    let told = must(tap.arg(&path));
    assert!(told.contains("agent_status"), "{told}");

    let may = async |user: &str| {
        let channel = || async { login(&broker, user, "hunter2").await.unwrap() };
        let mut can = Vec::new();
        for (name, done) in attempts(channel).await {
            if done {
                can.push(name);
            }
        }
        can
    };
    assert_eq!(may("postgres-agent").await, ["publish to the exchange"]);
    assert_eq!(may("postgres-agent-consumer").await, ["get from the queue", "purge the queue"]);
}

/// What a user could try, each on a connection of its own, and whether the broker let it.
async fn attempts<F: Future<Output = Channel>>(channel: impl Fn() -> F) -> Vec<(&'static str, bool)> {
    let table = FieldTable::default;
    let publish = async |exchange: &str, key: &str| {
        let channel = channel().await;
        let sent = channel.confirm_select(ConfirmSelectOptions::default()).await;
        let properties = BasicProperties::default();
        let options = BasicPublishOptions::default();
        let sent = match sent {
            Ok(()) => channel.basic_publish(exchange.into(), key.into(), options, b"x", properties).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(confirm) => confirm.await.is_ok_and(|confirm| confirm.is_ack()),
            Err(_) => false,
        }
    };
    vec![
        ("publish to the exchange", publish("postgres-agent", "x").await),
        ("publish to the default exchange", publish("", QUEUE).await),
        ("publish to another exchange", publish("amq.topic", "x").await),
        ("get from the queue", channel().await.basic_get(QUEUE.into(), BasicGetOptions::default()).await.is_ok()),
        ("declare a queue", {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            channel().await.queue_declare("other".into(), options, table()).await.is_ok()
        }),
        ("declare an exchange", {
            let options = ExchangeDeclareOptions::default();
            channel().await.exchange_declare("other".into(), ExchangeKind::Topic, options, table()).await.is_ok()
        }),
        ("bind the queue", {
            let (exchange, options) = ("postgres-agent", QueueBindOptions::default());
            channel().await.queue_bind(QUEUE.into(), exchange.into(), "y".into(), options, table()).await.is_ok()
        }),
        ("delete the queue", channel().await.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.is_ok()),
        ("delete the exchange", {
            let options = ExchangeDeleteOptions::default();
            channel().await.exchange_delete("postgres-agent".into(), options).await.is_ok()
        }),
        ("purge the queue", channel().await.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.is_ok()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_laptops_broker_knows_its_users_from_the_start() {
    let compose = yaml(&read("compose.yaml")).remove(0);
    let passwords = compose["configs"]["rabbitmq-passwords"]["content"].as_str().unwrap();
    let folder = Folder::new("laptop");
    for (name, text) in [("1.json", read("rabbitmq.json").as_str()), ("2.json", passwords)] {
        serde_json::from_str::<Value>(text).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let settings = compose["configs"]["rabbitmq-conf"]["content"].as_str().unwrap();
    let settings = settings.replace("/etc/rabbitmq/definitions", folder.path().to_str().unwrap());
    let broker = Broker::with_settings(&settings);
    let url = compose["services"]["agent"]["environment"]["POSTGRES_AGENT_AMQP__URL"].as_str().unwrap();
    let password =
        url.strip_prefix("amqp://postgres-agent:").and_then(|rest| rest.strip_suffix("@rabbitmq:5672/%2f")).unwrap();
    let channel = login(&broker, "postgres-agent", password).await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let sent = channel.basic_publish("postgres-agent".into(), "x".into(), options, b"x", properties).await.unwrap();
    assert!(sent.await.unwrap().is_ack());
    let channel = login(&broker, "postgres-agent-consumer", password).await.unwrap();
    let message = channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert_eq!(message.unwrap().data, b"x");
}

#[test]
fn the_examples_role_is_that_of_postgres_sql() {
    let server = Server::private(18);
    server.sql("DROP EXTENSION pg_stat_statements");
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(". \"$0\"").arg(file("kubernetes/example/role.sh"));
    bash.env("PGHOST", "127.0.0.1").env("PGPORT", server.port().to_string()).env("AGENT_PASSWORD", "it's");
    must(&mut bash);
    let same = "SELECT rolcanlogin, rolconnlimit, pg_has_role('postgres_agent', 'pg_monitor', 'USAGE') FROM pg_roles \
                WHERE rolname = 'postgres_agent'";
    assert_eq!(server.sql(same), "t|3|t");
    assert_eq!(server.sql("SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'"), "1");
}
