//! The unit: sound, hardly exposed, and really run by a systemd, as the package installs it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use serde_json::Value;

use super::{file, metrics::METRICS, package::package, read};
use crate::rig::{
    Folder,
    agent::command,
    free_port,
    machine::Machine,
    must,
    postgres::cache,
    rabbit::{self, Broker},
    wait_for, wait_for_async,
};

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn systemd_finds_nothing_wrong_and_little_exposed() {
    let folder = Folder::new("unit");
    let path = folder.path().join("postgres-agent.service");
    let unit = read("postgres-agent.service");
    fs::write(&path, unit.replace("/usr/bin/postgres-agent", env!("CARGO_BIN_EXE_postgres-agent"))).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && told.is_empty(), "{}", String::from_utf8_lossy(&told));
    // In tenths: 1.6, where a unit without any protection has 9.6.
    let mut judge = Command::new("systemd-analyze");
    judge.args(["security", "--offline=true", "--no-pager", "--threshold=16"]).arg(file("postgres-agent.service"));
    println!("figure: {}", must(&mut judge).lines().last().unwrap_or_default());
}

/// What an operator adds to the unit (`systemctl edit`).
fn drop_in(broker: &Broker, page: u16) -> String {
    let collectors = ["PG_ACTIVITY", "PG_STATEMENTS", "PG_LOCKS", "SYSTEM_METRICS", "AGENT_STATUS"];
    let intervals = collectors.map(|name| format!("Environment=POSTGRES_AGENT_COLLECTORS__{name}__INTERVAL=500ms\n"));
    format!(
        "[Service]\nEnvironment=POSTGRES_AGENT_HTTP__LISTEN=127.0.0.1:{page}\n\
         Environment=POSTGRES_AGENT_AMQP__DECLARE=false POSTGRES_AGENT_AMQP__EXCHANGE=unit\n\
         Environment=POSTGRES_AGENT_AMQP__PASSWORD_FILE=%d/amqp.password\n\
         Environment=POSTGRES_AGENT_AMQP__URL=amqp://unit@127.0.0.1:{}/%%2f\n{}",
        broker.port(),
        intervals.concat()
    )
}

/// The package on a machine with PostgreSQL behind Debian's peer authentication, and its unit not yet started.
fn installed(shared: &Folder, broker: &Broker, page: u16) -> Option<Machine> {
    fs::copy(package(), shared.path().join("agent.deb")).unwrap();
    fs::write(shared.path().join("drop-in.conf"), drop_in(broker, page)).unwrap();
    let machine = Machine::boot(shared.path())?;
    machine.must("dpkg --install /srv/agent.deb");
    assert_eq!(machine.must("systemctl is-enabled postgres-agent || true"), "disabled");
    assert_eq!(machine.must("systemctl is-active postgres-agent || true"), "inactive");
    let bin = cache().join("postgres-18/bin");
    let bin = bin.display();
    machine.must(&format!(
        "install -d -o postgres -g postgres -m 755 /run/postgresql && install -d -o postgres -g postgres /var/lib/postgresql/test && \
         setpriv --reuid=postgres --regid=postgres --clear-groups -- {bin}/initdb -D /var/lib/postgresql/test/data -U postgres \
         --auth=peer --encoding=UTF8 --locale=C --no-sync && \
         systemd-run --quiet --uid=postgres --unit=server {bin}/postgres -D /var/lib/postgresql/test/data \
         -c listen_addresses= -c unix_socket_directories=/run/postgresql -c shared_preload_libraries=pg_stat_statements -c fsync=off"
    ));
    let psql = "setpriv --reuid=postgres --regid=postgres --clear-groups -- psql -X -h /run/postgresql -d postgres";
    wait_for("PostgreSQL answers inside", BOUND, || machine.run(&format!("{psql} -c 'SELECT 1'")).status.success());
    machine.must(&format!("{psql} -f /usr/share/doc/postgres-agent/examples/postgres.sql"));
    machine.must(
        "install -D -m 644 /srv/drop-in.conf /etc/systemd/system/postgres-agent.service.d/test.conf && \
         install -d -m 700 /etc/credstore && (umask 077 && echo hunter2 >/etc/credstore/postgres-agent.amqp.password) && \
         systemctl daemon-reload",
    );
    Some(machine)
}

/// A property of the unit.
fn property(machine: &Machine, name: &str) -> String {
    machine.must(&format!("systemctl show --value --property={name} postgres-agent"))
}

/// The newest message of each collector in the queue, decoded.
fn newest(broker: &Broker) -> BTreeMap<String, Value> {
    let folder = Folder::new("unit-tap");
    let path = folder.path().join("agent.toml");
    fs::write(&path, format!("amqp.url = '{}'\nhttp.listen = ''\n", broker.url())).unwrap();
    let mut tap = command(["tap", "--json", "--queue", "unit", "--seconds", "2", "--config"]);
    let text = must(tap.arg(path));
    let bodies = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let bodies = bodies.map(|line| line.get("body").cloned().unwrap_or(line));
    bodies.map(|body| (body["collector"].as_str().unwrap_or_default().to_owned(), body["events"][0].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_it_runs_closed_in_sees_all_that_it_must_and_needs_no_password_of_the_database() {
    let broker = rabbit::shared();
    broker.durable_queue("unit", "unit").await;
    broker.ctl(&["add_user", "unit", "hunter2"]);
    broker.ctl(&["set_permissions", "unit", "^$", "^unit$", "^$"]);
    let shared = Folder::new("unit-shared");
    let page = free_port();
    let Some(machine) = installed(&shared, broker, page) else { return };
    machine.must("systemctl start postgres-agent");
    wait_for_async("it delivers", BOUND, async || (broker.ready_messages("unit").await >= 20).then_some(())).await;
    sees_all(&newest(broker));
    tells_metrics(page);
    closed_in(&machine);
    comes_back(&machine);
    goes_away(&machine);
}

fn sees_all(newest: &BTreeMap<String, Value>) {
    let status = &newest["agent_status"]["data"];
    for (name, collector) in status["collectors"].as_object().unwrap() {
        assert_eq!(collector["state"], "ok", "{name}: {collector}");
    }
    assert!(status["spool"]["trouble"].is_null(), "{status}");
    let metrics = newest["system_metrics"]["data"].as_object().unwrap();
    for part in ["cpu", "memory", "swap", "disk_io", "network_io"] {
        assert!(metrics[part].is_object(), "{part}: {metrics:?}");
    }
    for path in ["/", "/var/lib/postgresql"] {
        assert!(metrics["disk_usage"][path]["total"].as_u64() > Some(0), "{path}: {metrics:?}");
    }
    let pressure = std::path::Path::new("/proc/pressure/cpu").exists();
    assert_eq!(metrics["pressure"].is_object(), pressure, "{metrics:?}");
}

/// Alerts and dashboard ask for nothing that is not there.
fn tells_metrics(page: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", page)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let told = |name: &str| {
        let name = name.trim_end_matches("_bucket");
        text.contains(&format!("# TYPE postgres_agent_{name} "))
    };
    // While the spool does not grow, nothing says how long it lasts.
    let missing: Vec<_> = METRICS.iter().filter(|name| **name != "spool_lasts_seconds" && !told(name)).collect();
    assert!(missing.is_empty(), "{missing:?}: {text}");
}

fn closed_in(machine: &Machine) {
    // It tells its manager how it is, and that its loops turn.
    assert_eq!((property(machine, "Type"), property(machine, "WatchdogUSec")), ("notify".into(), "1min".into()));
    assert!(!property(machine, "StatusText").is_empty() && property(machine, "WatchdogTimestamp") != "n/a");
    let pid = property(machine, "MainPID");
    let status = machine.must(&format!("cat /proc/{pid}/status"));
    let of = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {status}"));
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let uid = machine.must("id -u postgres_agent");
    assert_eq!((of("Uid:"), of("NoNewPrivs:"), of("Seccomp:")), (uid, "1".into(), "2".into()));
    assert_eq!(machine.must(&format!("cat /proc/{pid}/oom_score_adj")), "500", "the database goes first");
    assert_eq!((of("CapEff:"), of("CapBnd:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(
        machine.must("stat -c '%U %a' /var/lib/postgres-agent /var/lib/postgres-agent/spool"),
        "postgres_agent 700\npostgres_agent 700"
    );
    // As the agent's process sees it: nothing but its own folder can be written to, and the devices are not there.
    let inside = |command: &str| machine.run(&format!("nsenter --target {pid} --mount -- {command}")).status.success();
    assert!(!inside("touch /etc/x") && !inside("touch /usr/x") && !inside("touch /var/lib/postgresql/x"));
    assert!(inside("touch /var/lib/postgres-agent/x"));
    assert!(!inside("test -e /dev/kmsg") && inside("test -e /dev/null"));
    machine.must("touch /root/secret");
    assert!(!inside("test -e /root/secret"));
}

/// Reloads, ends that are answered by a new start, and one that is not.
fn comes_back(machine: &Machine) {
    let pid = property(machine, "MainPID");
    machine.must("systemctl reload postgres-agent");
    assert_eq!((property(machine, "MainPID"), property(machine, "ActiveState")), (pid.clone(), "active".into()));
    machine.must("systemctl kill --kill-whom=main --signal=KILL postgres-agent");
    wait_for("it was started again", BOUND, || {
        property(machine, "NRestarts") == "1" && property(machine, "ActiveState") == "active"
    });
    assert_ne!(property(machine, "MainPID"), pid);

    machine.must(
        "cp /etc/postgres-agent/agent.toml /srv-agent.toml; echo 'nonsense = 1' >>/etc/postgres-agent/agent.toml",
    );
    machine.run("systemctl restart postgres-agent");
    wait_for("a bad configuration is final", BOUND, || property(machine, "SubState") == "failed");
    assert_eq!((property(machine, "ExecMainStatus"), property(machine, "NRestarts")), ("78".into(), "0".into()));
    machine.must("cp /srv-agent.toml /etc/postgres-agent/agent.toml && systemctl start postgres-agent");
    machine.must("systemctl stop postgres-agent");
    assert_eq!((property(machine, "Result"), property(machine, "ExecMainStatus")), ("success".into(), "0".into()));
}

/// Upgraded, it is started anew; removed, it is stopped and its data stay; purged, only the user does.
fn goes_away(machine: &Machine) {
    machine.must("systemctl start postgres-agent");
    let pid = property(machine, "MainPID");
    machine.must("dpkg --install /srv/agent.deb");
    assert_eq!(property(machine, "ActiveState"), "active");
    assert_ne!(property(machine, "MainPID"), pid);
    machine.must("dpkg --remove postgres-agent");
    assert_eq!(machine.must("systemctl is-active postgres-agent || true"), "inactive");
    machine.must("test -d /var/lib/postgres-agent/spool && test -e /etc/postgres-agent/agent.toml && ! test -e /usr/bin/postgres-agent");
    machine.must("dpkg --purge postgres-agent");
    machine.must("! test -e /var/lib/postgres-agent && ! test -e /etc/postgres-agent && getent passwd postgres_agent");
}
