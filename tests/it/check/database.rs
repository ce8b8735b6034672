//! PostgreSQL: reaching it, logging in, rights, limits and settings.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::{config, demand_passwords, rules, with_password};
use crate::rig::{
    operator::Operator,
    pgbouncer::Pooler,
    postgres::{Role, Server, Stop, shared},
    tls::{Authority, Valid},
    wait_for,
};

/// All that `check` likes to see.
const GOOD: &str = "track_io_timing = on\ntrack_activity_query_size = 4096\npassword_encryption = 'scram-sha-256'";

#[test]
fn whoever_cannot_log_in_is_told_why_and_what_lets_him_in() {
    let server = Server::with_settings(17, GOOD);
    let operator = with_password(&server, "first");
    operator.breaks_and_mends("postgres.reachable", "failure", || server.stop(Stop::Fast));
    let login = || _ = server.sql("ALTER ROLE agent PASSWORD 'another'");
    let finding = operator.breaks_and_mends("postgres.login", "failure", login);
    assert!(!finding.to_string().contains("first"), "{finding}");
    operator.breaks_and_mends("postgres.role", "failure", || _ = server.sql("ALTER ROLE agent NOLOGIN"));
    operator.breaks_and_mends("postgres.hba", "failure", || {
        rules(&server, "host all postgres all trust\nlocal all all trust\n");
    });
    operator.breaks_and_mends("postgres.hba", "failure", || {
        rules(&server, "host all postgres all trust\nhost all all all reject\n");
    });
    demand_passwords(&server, "first");
    let file = operator.at("word");
    operator.breaks_and_mends("postgres.password_file", "warning", || {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    });
    let url = server.url(Role::Agent).replace("/postgres", "/shop");
    operator.breaks_and_mends("postgres.database", "failure", || operator.set(&format!("postgres.url = '{url}'")));
    let url = server.url(Role::Agent).replace("agent@", "ghost@");
    operator.breaks_and_mends("postgres.role", "failure", || operator.set(&format!("postgres.url = '{url}'")));
}

#[test]
fn a_password_file_of_somebody_elses_is_given_to_the_agents_user() {
    let server = shared(18);
    let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];
    if !crate::rig::is_root() {
        println!("left out: only root can be somebody else");
        return;
    }
    let operator = Operator::new(server, None, &config(server)).under(&user);
    fs::write(operator.at("word"), "word\n").unwrap();
    operator.set("postgres.password_file = '$FOLDER/word'");
    own(&operator.at("word"), "postgres");
    operator.breaks_and_mends("postgres.password_file", "failure", || own(&operator.at("word"), "root"));
}

fn own(file: &Path, user: &str) {
    let owner = format!("{user}:{user}");
    assert!(Command::new("chown").arg(owner).arg(file).status().unwrap().success());
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_missing_are_told_before_and_when_it_is_too_late() {
    let server = tokio::task::block_in_place(|| Server::with_settings(17, "max_connections = 12"));
    let operator = Operator::new(&server, None, &config(&server));
    let few = |limit: u32| move |server: &Server| _ = server.sql(&format!("ALTER ROLE agent CONNECTION LIMIT {limit}"));
    tokio::task::block_in_place(|| {
        operator.breaks_and_mends("postgres.connections", "warning", || few(1)(&server));
        operator.breaks_and_mends("postgres.connections", "failure", || few(0)(&server));
    });
    let mut crowd = Vec::new();
    tokio::task::block_in_place(|| {
        operator.breaks_and_mends("postgres.connections", "failure", || {
            for _ in 0..9 {
                crowd.push(tokio::runtime::Handle::current().block_on(server.session(Role::Plain, "crowd")));
            }
        });
    });
}

#[test]
fn a_server_without_tls_is_told_where_the_agent_wants_it() {
    let server = Server::with_settings(17, GOOD);
    let authority = Authority::new("check");
    let own = authority.issue("server", "db", "IP:127.0.0.1", Valid::Now);
    for (from, name) in [(&own.cert, "server.crt"), (&own.key, "server.key")] {
        let to = server.data_dir().join(name);
        fs::copy(from, &to).unwrap();
        assert!(Command::new("chown").arg("--reference").arg(server.data_dir()).arg(&to).status().unwrap().success());
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let operator = Operator::new(&server, None, &config(&server));
    let url = |more: &str| format!("postgres.url = '{}?{more}'", server.url(Role::Agent));
    operator.breaks_and_mends("postgres.tls", "failure", || operator.set(&url("sslmode=require")));
    let found = operator.check();
    assert!(found["postgres.tls"]["cause"].as_str().unwrap().contains("TLSv1.3"), "{found:#?}");
    operator.set(&url("sslmode=verify-full&sslrootcert=system"));
    let found = operator.check();
    assert_eq!(found["postgres.tls.certificate"]["status"], "failure", "{found:#?}");
    operator.set(&url(&format!("sslmode=verify-full&sslrootcert={}", authority.file().display())));
    assert!(!operator.check().contains_key("postgres.tls.certificate"));
}

#[test]
fn what_the_server_does_not_keep_is_told_with_the_setting_that_keeps_it() {
    for version in [13, 18] {
        let server = Server::with_settings(version, GOOD);
        let operator = Operator::new(&server, None, &config(&server));
        let off = |setting: &str| {
            server.sql(&format!("ALTER SYSTEM SET {setting}"));
            server.sql("SELECT pg_reload_conf()");
            let (name, value) = setting.split_once(" = ").unwrap();
            wait_for("the setting is in force", std::time::Duration::from_secs(20), || {
                server.sql(&format!("SHOW {name}")) == value.trim_matches('\'')
            });
        };
        operator.breaks_and_mends("postgres.rights", "warning", || _ = server.sql("REVOKE pg_monitor FROM agent"));
        operator.breaks_and_mends("postgres.superuser", "warning", || _ = server.sql("ALTER ROLE agent SUPERUSER"));
        operator.breaks_and_mends("postgres.track_activities", "warning", || off("track_activities = off"));
        operator.breaks_and_mends("postgres.track_io_timing", "warning", || off("track_io_timing = off"));
        operator.breaks_and_mends("postgres.query_size", "warning", || {
            server.sql("ALTER SYSTEM SET track_activity_query_size = 1024");
            server.stop(Stop::Fast);
            server.start();
        });
        if version >= 14 {
            operator.breaks_and_mends("postgres.query_id", "warning", || off("compute_query_id = off"));
        }
    }
}

#[test]
fn a_pooler_a_standby_that_stands_still_and_a_false_clock_are_told() {
    let server = shared(18);
    let pooler = Pooler::before(server, "pool_mode = transaction");
    let operator = Operator::new(server, None, &config(server));
    operator.breaks_and_mends("postgres.pooler", "warning", || {
        operator.set(&format!("postgres.url = '{}'", pooler.url(Role::Agent)));
    });
    assert_eq!(
        operator.check()["postgres.login"]["status"],
        "ok",
        "the line that is printed leads to the server itself"
    );

    let (_primary, standby) = Server::with_standby(17);
    let watcher = Operator::new(&standby, None, &config(&standby));
    watcher.breaks_and_mends("postgres.recovery", "warning", || _ = standby.sql("SELECT pg_wal_replay_pause()"));

    let found = ["x86_64", "aarch64"].map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"));
    let faketime = found.into_iter().find(|path| Path::new(path).exists()).expect("libfaketime: run tests/servers.sh");
    let operator = Operator::new(server, None, &config(server));
    let clock = operator.at("clock");
    fs::write(&clock, "+0\n").unwrap();
    operator.shim("timedatectl", &format!("[ \"$*\" = 'set-ntp true' ] && echo +0 > {}", clock.display()));
    let preload = format!("LD_PRELOAD={faketime}");
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    let operator = operator.under(&["env", &preload, &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
    operator.breaks_and_mends("clocks", "warning", || fs::write(&clock, "+1h\n").unwrap());
}
