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
    disk::{Disk, Tampering, under_boot},
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

/// Names the file in which the victim below tells what it mounted.
const MOUNTER: &str = "POSTGRES_AGENT_RIG_MOUNTER";

#[test]
fn a_test_process_killed_with_9_leaves_no_disk_behind() {
    if let Some(tells) = std::env::var_os(MOUNTER) {
        let (Some(memory), Some(disk)) = (Disk::memory("memory", 1 << 20), Disk::ext4("image", 8 << 20)) else {
            fs::write(&tells, "left out").unwrap();
            return;
        };
        let cut = disk.power_cut();
        let told = [&memory, &disk, &cut].map(|disk| disk.path().to_str().unwrap());
        fs::write(&tells, told.join(" ")).unwrap();
        wait_for("the end that the other process brings", Duration::from_secs(60), || false);
    }
    let folder = Folder::new("mounter");
    let tells = folder.path().join("mounted");
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "rig_stands::a_test_process_killed_with_9_leaves_no_disk_behind"]);
    let mut victim = victim.env(MOUNTER, &tells).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let told = wait_for_some("the victim has its disks", Duration::from_secs(60), || {
        fs::read_to_string(&tells).ok().filter(|told| told == "left out" || told.split(' ').count() == 3)
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    if told == "left out" {
        println!("left out: this machine does not let us mount");
        return;
    }
    wait_for("disks and loop devices are gone", Duration::from_secs(30), || {
        let (mounts, loops) = (fs::read_to_string("/proc/mounts").unwrap(), loop_files());
        told.split(' ').all(|disk| {
            let folder = Path::new(disk).parent().unwrap();
            !mounts.contains(disk) && !folder.exists() && !loops.contains(folder.to_str().unwrap())
        })
    });
}

/// The files behind loop devices.
fn loop_files() -> String {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    devices.filter_map(|device| fs::read_to_string(device.join("loop/backing_file")).ok()).collect()
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    let Some(disk) = Disk::ext4("cut", 8 << 20) else { return };
    fs::write(disk.path().join("synced"), "kept").unwrap();
    fs::File::open(disk.path().join("synced")).unwrap().sync_all().unwrap();
    let before = disk.written();
    assert!(before.flushes > 0 && before.bytes > 0, "{before:?}");
    fs::write(disk.path().join("only written"), "gone").unwrap();
    let cut = disk.power_cut();
    assert_eq!(fs::read_to_string(cut.path().join("synced")).unwrap(), "kept");
    assert!(!cut.path().join("only written").exists());
    assert!(disk.path().join("only written").exists());
}

#[test]
fn the_boot_id_is_another_ones_for_that_process_only() {
    let folder = Folder::new("boot");
    let Some(under) = under_boot(folder.path(), 7) else { return };
    let read = |command: &mut Command| {
        let output = command.arg("/proc/sys/kernel/random/boot_id").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let made_up = read(Command::new(&under[0]).args(&under[1..]).arg("cat"));
    assert_eq!(made_up, "00000007-0000-4000-8000-000000000000");
    assert_ne!(read(&mut Command::new("cat")), made_up);
}

#[test]
fn the_kernel_answers_falsely_only_what_it_was_told_to_and_only_as_long() {
    const SCRIPT: &str = "import os, sys, time
while True:
    for name in sys.argv[1:]:
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        try:
            os.fdatasync(file)
            print(os.path.basename(name), 'synced', flush=True)
        except OSError as error:
            print(os.path.basename(name), error.errno, flush=True)
        os.close(file)
    time.sleep(0.02)
";
    let folder = Folder::new("tampered");
    let [one, other, log] = ["one", "other", "log"].map(|name| folder.path().join(name));
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", SCRIPT]).args([&one, &other]).stdout(fs::File::create(&log).unwrap());
    let mut python = python.spawn().unwrap();
    let ends = |line: &'static str| {
        let log = log.clone();
        wait_for(line, Duration::from_secs(10), || fs::read_to_string(&log).unwrap().contains(line));
    };
    ends("one synced");
    if let Some(tampering) = Tampering::with(python.id(), "fdatasync:error=EIO", std::slice::from_ref(&one)) {
        ends("one 5");
        assert!(tampering.times() > 0);
        drop(tampering);
        fs::write(&log, "").unwrap();
        ends("one synced");
        assert!(!fs::read_to_string(&log).unwrap().contains("other 5"));
    }
    python.kill().unwrap();
    python.wait().unwrap();
}
