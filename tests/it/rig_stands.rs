//! The rig keeps its word. Not about the agent: what the other tests take for granted is shown here.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions},
};

use crate::rig::{
    Folder,
    postgres::{self, Role, Server, Stop, VERSIONS},
    rabbit::Broker,
    wait_for, wait_for_async, wait_for_some,
};

#[test]
fn every_version_answers_with_statements_and_roles() {
    for version in VERSIONS {
        let server = postgres::shared(version);
        assert_eq!(server.sql("SELECT current_setting('server_version_num')::int / 10000"), version.to_string());
        assert_eq!(server.sql("SELECT count(*) > 0 FROM pg_stat_statements"), "t");
        let rights = "SELECT rolname, pg_has_role(rolname, 'pg_monitor', 'member') FROM pg_roles
            WHERE rolname IN ('agent', 'plain') ORDER BY 1";
        assert_eq!(server.sql(rights), "agent|t\nplain|f");
        assert!(server.log().contains("ready to accept connections"));
        assert!(server.socket_dir().join(format!(".s.PGSQL.{}", server.port())).exists());
    }
}

#[tokio::test]
async fn a_private_server_comes_back_with_its_data() {
    let server = Server::private(18);
    let session = server.session(Role::Plain, "before the stop").await;
    assert_eq!(server.sql("SELECT usename FROM pg_stat_activity WHERE application_name = 'before the stop'"), "plain");
    server.sql("CREATE TABLE kept AS SELECT 42 AS answer");
    server.stop(Stop::Fast);
    assert!(session.simple_query("SELECT 1").await.is_err());
    server.start();
    assert_eq!(server.sql("SELECT answer FROM kept"), "42");
    server.stop(Stop::Immediate);
    server.start();
    assert_eq!(server.sql_in("template1", "SELECT 1"), "1");
    assert_eq!(server.version(), 18);
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_its_durable_queue() {
    let broker = Broker::private();
    broker.durable_queue("rig", "rig").await;
    let (_connection, channel) = broker.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let publish = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = channel.basic_publish("rig".into(), "any".into(), publish, b"body", persistent).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
    broker.kill();
    assert!(!broker.runs());
    broker.start();
    assert_eq!(broker.ready_messages("rig").await, 1);
    broker.stop();
    broker.start();
    assert!(broker.ctl(&["list_queues", "name", "messages"]).contains("rig\t1"), "{}", broker.log());
    let (_connection, channel) = broker.channel().await;
    broker.freeze(true);
    let declare = channel.queue_purge("rig".into(), QueuePurgeOptions::default());
    assert!(tokio::time::timeout(Duration::from_millis(300), declare).await.is_err(), "a frozen broker answers nobody");
    broker.freeze(false);
    wait_for_async("the queue is empty", Duration::from_secs(20), async || {
        (broker.ready_messages("rig").await == 0).then_some(())
    })
    .await;
}

/// Names the file in which the victim below tells what it started.
const VICTIM: &str = "POSTGRES_AGENT_RIG_VICTIM";

#[test]
fn a_test_process_killed_with_9_leaves_neither_servers_nor_folders() {
    if let Some(tells) = std::env::var_os(VICTIM) {
        let (server, broker) = (Server::private(18), Broker::private());
        let told = format!("{} {} {}", server.port(), broker.port(), server.data_dir().display());
        fs::write(&tells, told).unwrap();
        wait_for("the end that the other process brings", Duration::from_secs(60), || false);
    }
    let folder = Folder::new("victim");
    let tells = folder.path().join("started");
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "rig_stands::a_test_process_killed_with_9_leaves_neither_servers_nor_folders"]);
    let mut victim = victim.env(VICTIM, &tells).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let told = wait_for_some("the victim has its servers", Duration::from_secs(120), || {
        fs::read_to_string(&tells).ok().filter(|told| told.split(' ').count() == 3)
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    let told: Vec<&str> = told.split(' ').collect();
    let listens = |port: &str| TcpStream::connect(("127.0.0.1", port.parse().unwrap())).is_ok();
    wait_for("servers and folders are gone", Duration::from_secs(30), || {
        !listens(told[0]) && !listens(told[1]) && !Path::new(told[2]).exists()
    });
}
