//! The commands as a person meets them: exit statuses, what goes to stdout and what to stderr, help.

use std::{
    fs,
    io::Read,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    faults::scene::{Scene, nothing},
    rig::{
        Folder,
        agent::command,
        postgres::{self, Role, Server},
        rabbit, wait_for, wait_for_async,
    },
    schemas::contradictions,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command with a configuration.
fn run(config: &str, args: &[&str]) -> Output {
    let folder = Folder::new("cli");
    let file = folder.path().join("agent.toml");
    let spool = folder.path().join("spool");
    fs::write(&file, config.replace("$SPOOL", spool.to_str().unwrap())).unwrap();
    command(args).arg("--config").arg(&file).output().unwrap()
}

#[track_caller]
fn check(output: &Output, status: i32) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "stdout: {out}\nstderr: {err}");
}

/// Every command with the arguments that it cannot do without.
const COMMANDS: &[&[&str]] = &[&["run"], &["check"], &["collect"], &["tap"], &["schema"], &["config"]];

#[test]
fn a_bad_configuration_is_78_for_every_command_and_all_of_it_is_told() {
    let config =
        "[postgres]\nurl = 'postgres://u:hunter2@h/db?sslmode=perhaps'\npool_sise = 3\n[log]\nlevel = 'loud'\n";
    for args in COMMANDS {
        let output = run(config, args);
        check(&output, 78);
        let err = text(&output.stderr);
        assert_eq!(output.stdout, b"", "{args:?}");
        for (path, line) in [("postgres.url", 2), ("postgres.pool_sise", 3), ("log.level", 5)] {
            let place = format!("agent.toml:{line}) ");
            assert!(err.lines().any(|told| told.starts_with(path) && told.contains(&place)), "{args:?} {path}: {err}");
        }
        assert!(!err.contains("hunter2"), "{err}");
    }
}

#[test]
fn wrong_usage_is_2_and_says_what_there_is() {
    let output = run("", &["schema", "pg_lock"]);
    check(&output, 2);
    assert!(text(&output.stderr).contains("pg_locks"));
    check(&run("", &["collect", "nothing"]), 2);
    check(&run("", &["tap", "--ack"]), 2);
    check(&run("", &["dance"]), 2);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command(["schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    check(&output, 0);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn help_man_and_completions_know_every_command_and_explain_every_option() {
    let help = text(&command(["--help"]).output().unwrap().stdout);
    let script = text(&command(["completions", "bash"]).output().unwrap().stdout);
    for args in COMMANDS {
        let name = args[0];
        assert!(help.contains(&format!("\n  {name} ")), "{name}: {help}");
        assert!(script.contains(name), "{name}");
        let own = text(&command([name, "--help"]).output().unwrap().stdout);
        // An option's line is followed by a line that is indented deeper: what it does.
        let lines: Vec<&str> = own.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("--")) {
            assert!(lines.get(at + 1).is_some_and(|told| told.starts_with("          ")), "{name}: {line}\n{own}");
        }
        let page = command(["man", name]).output().unwrap();
        check(&page, 0);
        assert!(text(&page.stdout).contains(".SH OPTIONS"), "{name}");
    }
}

#[test]
fn the_effective_configuration_tells_where_each_value_came_from_and_no_secret() {
    let config = "[postgres]\nurl = 'postgres://u:hunter2@127.0.0.1/db'\n\
                  [amqp]\nurl = 'amqp://u:hunter2@h'\nurls = ['amqp://v:hunter2@h', 'amqp://w:hunter2@h']\n";
    let output = run(config, &["config"]);
    check(&output, 0);
    let out = text(&output.stdout);
    let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {out}"));
    assert!(line("url = \"postgres://u:***@127.0.0.1/db\"").ends_with("agent.toml:2"));
    assert!(line("urls = [\"amqp://v:***@h\", \"amqp://w:***@h\"]").ends_with("agent.toml:5"));
    assert!(line("pool_size = 2 ").ends_with("# default"));
    assert!(!out.contains("hunter2"));
}

/// One session waits for another one's row while the test looks.
async fn blocked<T>(server: &Server, look: impl FnOnce() -> T) -> T {
    server.sql(
        "DROP TABLE IF EXISTS cli_stock; CREATE TABLE cli_stock AS SELECT 1 AS id; GRANT ALL ON cli_stock TO PUBLIC",
    );
    let holder = server.session(Role::Plain, "cli holder").await;
    holder.batch_execute("BEGIN; UPDATE cli_stock SET id = 2").await.unwrap();
    let waiter = server.session(Role::Plain, "bitville-6F1C1F0E-8c55-4b52-9f57-0d3c1a2b4c5d").await;
    let waiting = tokio::spawn(async move { waiter.batch_execute("UPDATE cli_stock SET id = 3").await });
    wait_for("a session waits for a row", Duration::from_secs(10), || {
        server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1"
    });
    let result = tokio::task::block_in_place(look);
    holder.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap().unwrap();
    server.sql("DROP TABLE cli_stock");
    result
}

fn bodies(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn collect_prints_bodies_that_keep_to_their_schemas() {
    for version in [13, 18] {
        let server = Server::private(version);
        let config = format!("postgres.url = '{}'\nspool.dir = '$SPOOL'", server.url(Role::Agent));
        let output = blocked(&server, || run(&config, &["collect", "agent_status", "pg_locks", "pg_activity"])).await;
        check(&output, 0);
        let bodies = bodies(&output);
        let names: Vec<_> = bodies.iter().map(|body| body["collector"].as_str().unwrap()).collect();
        assert_eq!(names, ["pg_activity", "pg_locks", "agent_status"]);
        for body in &bodies {
            assert_eq!(contradictions(body["collector"].as_str().unwrap(), body), [""; 0], "{body}");
            assert_eq!((&body["seq"], &body["agent_id"]), (&1.into(), &Value::Null));
            assert_eq!(body["run_id"], bodies[0]["run_id"]);
        }
        let [activity, locks, status] = bodies.as_slice() else { panic!("three bodies") };
        let rows = activity["events"][0]["data"].as_array().unwrap();
        let request = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";
        assert!(rows.iter().any(|row| row["correlation_id"] == request), "{activity}");
        let edge = &locks["events"][0]["data"][0];
        assert_eq!(
            (&edge["blocked_correlation_id"], &edge["blocking_application"]),
            (&request.into(), &"cli holder".into())
        );
        let told = &status["events"][0]["data"];
        assert_eq!((&told["sent"]["pg_locks"], &told["collectors"]["pg_locks"]["state"]), (&1.into(), &"ok".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collect_shows_people_who_blocks_whom() {
    let server = Server::private(18);
    let config = format!("postgres.url = '{}'", server.url(Role::Agent));
    let output = blocked(&server, || run(&config, &["collect", "pg_locks", "--format", "table"])).await;
    check(&output, 0);
    let out = text(&output.stdout);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("pg_locks at ") && lines[0].contains(", 1 row,"), "{out}");
    assert!(lines[1].contains("cli holder (idle in transaction): BEGIN; UPDATE cli_stock SET id = 2"), "{out}");
    assert!(
        lines[2].starts_with("└─ ") && lines[2].contains("for ShareLock (transactionid) on public.cli_stock"),
        "{out}"
    );
}

#[test]
fn a_collector_that_fails_is_1_and_the_others_still_speak() {
    let config = "postgres.url = 'postgres://agent@127.0.0.1:1/postgres'";
    let output = run(config, &["collect", "pg_locks", "agent_status"]);
    check(&output, 1);
    assert!(text(&output.stderr).contains("pg_locks failed: "), "{}", text(&output.stderr));
    let bodies = bodies(&output);
    assert_eq!(bodies[0]["events"][0]["data"]["collectors"]["pg_locks"]["state"], "failing");
}

#[test]
fn a_role_without_rights_is_told_what_mends_it() {
    let server = postgres::shared(18);
    let output = run(&format!("postgres.url = '{}'", server.url(Role::Plain)), &["collect", "pg_activity"]);
    check(&output, 0);
    assert!(text(&output.stderr).contains("GRANT pg_monitor TO \"plain\";"), "{}", text(&output.stderr));
}

/// The findings of `check --json` by their id: status and mend.
fn findings(output: &Output) -> Vec<(String, String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = bodies(output);
    findings.iter().map(|finding| (text(finding, "id"), text(finding, "status"), text(finding, "mend"))).collect()
}

#[track_caller]
fn check_finding(output: &Output, id: &str, status: &str, mend: &str) {
    let findings = findings(output);
    let found = findings.iter().find(|(found, _, _)| found == id).unwrap_or_else(|| panic!("{id}: {findings:?}"));
    assert!(found.1 == status && found.2.contains(mend), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_of_each_thing_how_it_is_and_what_mends_it() {
    let (server, broker) = (postgres::shared(18), rabbit::shared());
    let config = |role, rest: &str| {
        let (postgres, amqp) = (server.url(role), broker.url());
        format!("postgres.url = '{postgres}'\nspool.dir = '$SPOOL'\nspool.min_free = '0'\namqp.url = '{amqp}'\n{rest}")
    };
    let good = run(&config(Role::Agent, "amqp.exchange = 'cli-check'"), &["check", "--json"]);
    check(&good, 0);
    let fine = ["configuration", "spool.folder", "postgres.login", "postgres.version", "postgres.rights", "clocks"];
    for id in fine.into_iter().chain(["collector.pg_activity", "collector.pg_locks", "amqp.login", "amqp.exchange"]) {
        check_finding(&good, id, "ok", "");
    }
    // Nothing was changed: the exchange that would be declared is still missing.
    let rest = "amqp.exchange = 'cli-check'\namqp.declare = false";
    let bad = run(&config(Role::Plain, rest), &["check", "--json"]);
    check(&bad, 1);
    check_finding(&bad, "amqp.exchange", "failure", "declare exchange name=cli-check type=topic durable=true");
    check_finding(&bad, "postgres.rights", "warning", "GRANT pg_monitor TO \"plain\";");
    let people = run(&config(Role::Agent, "amqp.exchange = 'amq.direct'"), &["check"]);
    check(&people, 1);
    assert!(
        text(&people.stdout).lines().last().unwrap().ends_with(" warnings, 1 failures"),
        "{}",
        text(&people.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_probes_each_routing_key_for_a_queue() {
    const NAME: &str = "cli-probe";
    let (server, broker) = (postgres::shared(18), rabbit::shared());
    broker.durable_queue(NAME, NAME).await;
    let config = |exchange: &str, key: &str| {
        let (postgres, amqp) = (server.url(Role::Agent), broker.url());
        format!(
            "postgres.url = '{postgres}'\nspool.dir = '$SPOOL'\nspool.min_free = '0'\namqp.url = '{amqp}'\n\
             amqp.exchange = '{exchange}'\namqp.routing_key = '{key}'\ncollectors.pg_statements.enabled = false\n"
        )
    };
    let bound = run(&config(NAME, "x.{collector}"), &["check", "--json", "--probe"]);
    check(&bound, 0);
    for collector in ["pg_activity", "pg_locks", "system_metrics", "agent_status"] {
        check_finding(&bound, &format!("amqp.route.x.{collector}"), "ok", "");
    }
    assert!(!findings(&bound).iter().any(|(id, ..)| id == "amqp.route.x.pg_statements"), "it is turned off");
    assert_eq!(broker.ready_messages(NAME).await, 0, "no queue keeps a probe");

    // A topic exchange that every broker has, and that nothing is bound to here.
    let unbound = run(&config("amq.topic", "all"), &["check", "--json", "--probe"]);
    check(&unbound, 1);
    let routes: Vec<_> = findings(&unbound).into_iter().filter(|(id, ..)| id.starts_with("amqp.route.")).collect();
    assert_eq!(routes.len(), 1, "one for each routing key: {routes:?}");
    let binding = "declare binding source=amq.topic destination_type=queue destination=postgres-agent routing_key=all";
    check_finding(&unbound, "amqp.route.all", "failure", binding);
    let missing = run(&config("cli-probe-missing", "all"), &["check", "--json", "--probe"]);
    check_finding(&missing, "amqp.exchange", "ok", "");
    check_finding(&missing, "amqp.route.all", "failure", "declare exchange name=cli-probe-missing");
    let silent = run(&config("amq.topic", "all"), &["check", "--json"]);
    assert!(!findings(&silent).iter().any(|(id, ..)| id.starts_with("amqp.route.")), "only where it is asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn tap_reads_through_whichever_node_answers() {
    const NAME: &str = "cli-nodes";
    let broker = rabbit::shared();
    broker.durable_queue(NAME, NAME).await;
    let config = format!("amqp.url = 'amqp://127.0.0.1:1'\namqp.urls = ['{}']\namqp.exchange = '{NAME}'", broker.url());
    for place in [&["--queue", NAME] as &[&str], &[]] {
        let args = [&["tap", "--seconds", "0.1", "--audit"], place].concat();
        let output = run(&config, &args);
        check(&output, 0);
        assert!(text(&output.stdout).contains("not provable"), "{}", text(&output.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tap_reads_more_of_a_quorum_queue_than_that_gives_by_itself() {
    const NAME: &str = "cli-quorum";
    let broker = rabbit::shared();
    broker.quorum_queue(NAME, NAME).await;
    let (connection, channel) = broker.channel().await;
    for _ in 0..2_500 {
        let options = lapin::options::BasicPublishOptions::default();
        let published =
            channel.basic_publish(NAME.into(), "x".into(), options, b"x", lapin::BasicProperties::default());
        published.await.unwrap();
    }
    wait_for_async("all lie in the queue", Duration::from_secs(20), async || {
        (broker.ready_messages(NAME).await == 2_500).then_some(())
    })
    .await;
    let config = format!("amqp.url = '{}'\namqp.exchange = '{NAME}'", broker.url());
    let output = run(&config, &["tap", "--audit", "--queue", NAME]);
    check(&output, 0);
    assert_eq!(text(&output.stderr).matches("none of an agent's").count(), 2_500);
    connection.close(200, "done".into()).await.unwrap();
}

#[test]
fn check_tells_who_is_away_and_no_secret() {
    let config = "postgres.url = 'postgres://agent:hunter2@127.0.0.1:1/x'\namqp.url = 'amqp://u:hunter2@127.0.0.1:1'\n\
                  spool.dir = '/dev/null/spool'";
    let output = run(config, &["check", "--json"]);
    check(&output, 1);
    for id in ["postgres.reachable", "amqp.reachable", "spool.folder"] {
        check_finding(&output, id, "failure", "");
    }
    assert!(!findings(&output).iter().any(|(id, _, _)| id == "collector.pg_locks"), "told once");
    assert_eq!(text(&output.stderr), "", "what was found stands on stdout alone");
    assert!(!(text(&output.stdout) + &text(&output.stderr)).contains("hunter2"));
    let refused = run("nonsense = 1", &["check", "--json"]);
    check(&refused, 78);
    check_finding(&refused, "configuration", "failure", "key");
}

#[tokio::test(flavor = "multi_thread")]
async fn tap_shows_what_was_asked_for_and_sums_up() {
    let id = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";
    let scene = Scene::new("cli-tap", &rabbit::shared().url(), &["#"]).await;
    let session = postgres::shared(18).session(Role::Postgres, &format!("bitville-{id}")).await;
    let sleeping = tokio::spawn(async move { _ = session.simple_query("SELECT pg_sleep(600)").await });
    let agent = scene.start(&rabbit::shared().url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let tap = |args: &[&str]| {
        let file = scene.path().join("agent.toml");
        let output = tokio::task::block_in_place(|| {
            command(["tap", "--seconds", "60"]).args(args).arg("--config").arg(file).output().unwrap()
        });
        check(&output, 0);
        output
    };
    let locks = tap(&["--collector", "pg_locks", "--count", "3", "--json"]);
    let found = bodies(&locks);
    assert!(found.len() == 3 && found.iter().all(|message| message["headers"]["collector"] == "pg_locks"), "{found:?}");
    assert!(text(&locks.stderr).contains("read: pg_locks 3 messages, "), "{}", text(&locks.stderr));
    let own = bodies(&tap(&["--correlation-id", id, "--count", "1", "--json"]));
    let rows = own[0]["body"]["events"][0]["data"].as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row["correlation_id"] == id), "{rows:?}");
    let people = tap(&["--correlation-id", id, "--count", "1"]);
    let shown = text(&people.stdout);
    assert!(shown.contains("pg_activity  seq ") && shown.contains("xact_age") && shown.contains("pg_sleep"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "no colours in a pipe: {shown}");
    sleeping.abort();
    assert_eq!(scene.end(agent).await, nothing());
}
