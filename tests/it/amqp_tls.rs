//! TLS to the broker with real certificates and a real RabbitMQ: what is trusted, who logs in and how, and that each
//! failure is told as what it is, in one line, and leaves nothing behind.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use postgres_agent::{
    amqp::{self, Connection},
    config,
};
use serde_json::Value;

use crate::rig::{
    Folder,
    agent::{Agent, command},
    alone,
    postgres::{self, Role},
    rabbit,
    tls::{Certificate, Secured, Valid, shared},
    wait_for, wait_for_async,
};

const BOUND: Duration = Duration::from_secs(60);

/// The `[amqp]` table of a configuration.
fn amqp(lines: &str) -> amqp::Config {
    let folder = Folder::new("amqp");
    let file = folder.path().join("agent.toml");
    fs::write(&file, lines).unwrap();
    config::load(Some(&file)).unwrap().config.amqp
}

fn trusting(secured: &Secured, url: &str) -> String {
    format!("amqp.url = '{url}'\namqp.ca_file = '{}'\n", secured.authority.file().display())
}

fn showing(certificate: &Certificate) -> String {
    format!("amqp.cert_file = '{}'\namqp.key_file = '{}'\n", certificate.cert.display(), certificate.key.display())
}

/// Whether it gets in, or why not: one line that holds no secret.
#[track_caller]
fn check(lines: &str, want: Result<(), &str>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let config = amqp(lines);
    async move {
        let start = Instant::now();
        let got = Connection::login(&config, 0).await.map(drop);
        let got = got.map_err(|error| postgres_agent::spool::chain(&error));
        println!("{:>4} ms  {got:?}", start.elapsed().as_millis());
        match (&got, want) {
            (Ok(()), Ok(())) => {}
            (Err(got), Err(want)) => {
                assert!(got.contains(want), "{got:?} does not say {want:?} ({caller})");
                assert!(!got.contains('\n') && !got.contains("guest:guest") && !got.contains("hunter2"), "{got}");
            }
            _ => panic!("{got:?}, not {want:?} ({caller})"),
        }
    }
}

fn url(port: u16) -> String {
    format!("amqps://guest:guest@127.0.0.1:{port}/%2f")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_brokers_certificate_is_told_as_what_it_is() {
    let secured = shared();
    let trusted = |port| trusting(secured, &url(port));
    check(&trusted(secured.good()), Ok(())).await;
    // The host's own authorities, among which ours is not.
    check(&format!("amqp.url = '{}'", url(secured.good())), Err("an authority that is not trusted here")).await;

    let expired = secured.listen(&secured.shown("expired", "IP:127.0.0.1", Valid::Past), &[]);
    check(&trusted(expired), Err("has a certificate that is expired (2021-01-01T00:00:00Z)")).await;
    let early = secured.listen(&secured.shown("early", "IP:127.0.0.1", Valid::Future), &[]);
    check(&trusted(early), Err("has a certificate that is not valid yet (2048-01-01T00:00:00Z)")).await;
    let foreign = secured.stranger.issue("foreign", "broker", "IP:127.0.0.1", Valid::Now).for_a_server();
    let foreign = secured.listen(&foreign, &[]);
    check(&trusted(foreign), Err("has a certificate of an authority that is not trusted here")).await;
    let elsewhere = secured.listen(&secured.shown("elsewhere", "DNS:mq.test", Valid::Now), &[]);
    check(&trusted(elsewhere), Err("has a certificate for mq.test, not for 127.0.0.1")).await;
    let named = format!("{}?server_name_indication=mq.test", url(elsewhere));
    check(&trusting(secured, &named), Ok(())).await;
    let old = secured.listen(&secured.shown("old", "IP:127.0.0.1", Valid::Now), &["{versions, ['tlsv1.1']}"]);
    check(&trusted(old), Err("has neither TLS 1.2 nor 1.3")).await;
    for version in ["tlsv1.2", "tlsv1.3"] {
        let one = secured
            .listen(&secured.shown(version, "IP:127.0.0.1", Valid::Now), &[&format!("{{versions, ['{version}']}}")]);
        check(&trusted(one), Ok(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_and_may_be_the_login() {
    let secured = shared();
    secured.broker.ctl(&["add_user", "external", "hunter2"]);
    secured.broker.ctl(&["set_permissions", "external", "", "", ""]);
    let demanding =
        secured.listen(&secured.shown("demanding", "IP:127.0.0.1", Valid::Now), &["{fail_if_no_peer_cert, true}"]);
    let own = secured.authority.issue("external", "external", "DNS:agent", Valid::Now);
    let trusted = trusting(secured, &url(demanding));
    check(&trusted, Err("demands a client certificate")).await;
    check(&(trusted.clone() + &showing(&own)), Ok(())).await;
    let foreign = secured.stranger.issue("agent", "external", "DNS:agent", Valid::Now);
    check(&(trusted.clone() + &showing(&foreign)), Err("does not know the authority of the client certificate")).await;
    let expired = secured.authority.issue("late", "external", "DNS:agent", Valid::Past);
    check(&(trusted.clone() + &showing(&expired)), Err("finds the client certificate expired")).await;

    // SASL EXTERNAL: asked for, or where there is a certificate and nothing else.
    let plain = |query: &str| trusting(secured, &format!("amqps://127.0.0.1:{demanding}/%2f{query}"));
    check(&(plain("") + &showing(&own)), Ok(())).await;
    check(&(plain("?auth_mechanism=external") + &showing(&own)), Ok(())).await;
    check(&plain(&format!("?certfile={}&keyfile={}", own.cert.display(), own.key.display())), Ok(())).await;
    let nobody = secured.authority.issue("nobody", "nobody", "DNS:agent", Valid::Now);
    check(&(plain("") + &showing(&nobody)), Err("refused the client certificate on vhost \"/\": ")).await;
    let wrong = trusting(secured, &format!("amqps://external:wrong-hunter2@127.0.0.1:{demanding}/%2f"));
    check(&(wrong + &showing(&own)), Err("refused user \"external\" on vhost \"/\": ")).await;

    // A file that cannot be used is named, and the broker never asked.
    let loose = secured.authority.issue("loose", "external", "DNS:agent", Valid::Now);
    fs::set_permissions(&loose.key, fs::Permissions::from_mode(0o644)).unwrap();
    check(&(plain("") + &showing(&loose)), Err("loose.key: others may read it (chmod 0600)")).await;
    let mixed = Certificate { cert: own.cert.clone(), key: expired.key.clone() };
    check(&(plain("") + &showing(&mixed)), Err("late.key: it is not the key of the client certificate")).await;
    let absent = Certificate { cert: own.cert.with_extension("absent"), key: own.key.clone() };
    check(&(plain("") + &showing(&absent)), Err("external.absent: ")).await;
    let swapped = Certificate { cert: own.key.clone(), key: own.key.clone() };
    check(&(plain("") + &showing(&swapped)), Err("client certificate ")).await;
}

/// A peer on a port of its own that does this with each connection.
fn peer(with: fn(TcpStream) -> io::Result<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // However it ends: the other side went away.
            std::thread::spawn(move || _ = with(stream));
        }
    });
    port
}

fn silent(mut stream: TcpStream) -> io::Result<()> {
    while stream.read(&mut [0; 512])? > 0 {}
    Ok(())
}

fn closing(mut stream: TcpStream) -> io::Result<()> {
    stream.read(&mut [0; 2048]).map(drop)
}

fn web_server(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
    silent(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_silence_are_told_apart_and_nothing_falls_back() {
    let secured = shared();
    let trusted = |port| trusting(secured, &url(port));
    let plain = url(secured.good()).replace("amqps:", "amqp:");
    check(&format!("amqp.url = '{plain}'"), Err("speaks TLS on this port: write amqps")).await;
    check(&trusted(secured.broker.port()), Err("answered with something that is no TLS")).await;
    check(&trusted(peer(web_server)), Err("answered with something that is no TLS")).await;
    check(&trusted(peer(closing)), Err("closed the connection within the TLS handshake")).await;
    let silent = format!("{}?connection_timeout=300", url(peer(silent)));
    check(&trusting(secured, &silent), Err("did not finish the TLS handshake within 300ms")).await;
    let nobody = format!("{}?connection_timeout=300", url(1));
    check(&trusting(secured, &nobody), Err("Connection refused")).await;
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn five_hundred_failed_handshakes_leave_nothing_behind() {
    if !alone("amqp_tls::five_hundred_failed_handshakes_leave_nothing_behind") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let secured = shared();
        let silent = amqp(&trusting(secured, &format!("{}?connection_timeout=100", url(peer(silent)))));
        let plain = amqp(&trusting(secured, &url(secured.broker.port())));
        let untrusted = amqp(&format!("amqp.url = '{}'", url(secured.good())));
        // The handshake succeeds, and the login does not.
        let refused = url(secured.good()).replace("guest:guest", "guest:wrong");
        let refused = amqp(&trusting(secured, &refused));
        let fail = async |times: usize| {
            for attempt in 0..times {
                let config = [&silent, &plain, &untrusted, &refused][attempt % 4];
                Connection::login(config, 0).await.expect_err("nobody gets in");
            }
        };
        fail(40).await;
        let now = || (count("/proc/self/task"), count("/proc/self/fd"), resident());
        let before = now();
        fail(500).await;
        let mut after = now();
        wait_for("threads and descriptors are as before", BOUND, || {
            after = now();
            after.0 <= before.0 && after.1 <= before.1
        });
        println!("figure: 500 failed TLS handshakes: threads, descriptors, RSS before {before:?}, after {after:?}");
        assert!(after.2 < before.2 + (16 << 20), "{} bytes more", after.2 - before.2);
    });
}

fn resident() -> u64 {
    crate::faults::scene::rss(std::process::id())
}

/// What `check --json` finds: each finding by its id.
fn findings(folder: &Folder, config: &str) -> (Option<i32>, std::collections::BTreeMap<String, Value>) {
    let file = folder.path().join("agent.toml");
    fs::write(&file, config).unwrap();
    let output = command(["check", "--json", "--config"]).arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    (output.status.code(), lines.map(|line| (line["id"].as_str().unwrap().to_owned(), line)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_only_write_to_the_exchange_is_enough() {
    const QUEUE: &str = "least";
    let secured = shared();
    let (broker, folder) = (&secured.broker, Folder::new("least"));
    broker.durable_queue(QUEUE, QUEUE).await;
    broker.ctl(&["add_user", "writer", "hunter2"]);
    broker.ctl(&["set_permissions", "writer", "", "^least$", ""]);
    let config = format!(
        "{}postgres.url = '{}'\namqp.exchange = '{QUEUE}'\namqp.declare = false\nspool.dir = '{}'\nspool.min_free = '0'\n\
         collectors.agent_status.interval = '200ms'\n",
        trusting(secured, &format!("amqps://writer:hunter2@127.0.0.1:{}/%2f", secured.good())),
        postgres::shared(18).url(Role::Agent),
        folder.path().join("spool").display(),
    );
    let (status, found) = findings(&folder, &config);
    assert_eq!((&found["amqp.login"]["status"], &found["amqp.exchange"]["status"]), (&"ok".into(), &"ok".into()));
    assert_eq!(status, Some(0), "{found:#?}");
    let agent = Agent::start(folder.path(), &config);
    wait_for_async("it delivers", BOUND, async || (broker.ready_messages(QUEUE).await >= 5).then_some(())).await;
    assert!(agent.stop(BOUND).0.success());

    // The other way round: without the right to declare, `check` says which one is missing.
    let (status, found) = findings(&folder, &config.replace("'least'\namqp.declare = false", "'other'"));
    assert_eq!(
        (status, &found["amqp.rights"]["status"]),
        (Some(1), &"failure".into()),
        "it may not be made: {found:#?}"
    );
    let (status, found) = findings(&folder, &config.replace("amqp.declare = false\n", ""));
    let exchange = &found["amqp.rights"];
    assert_eq!((status, &exchange["status"]), (Some(1), &"failure".into()), "{found:#?}");
    assert!(exchange["cause"].as_str().unwrap().contains("access to exchange 'least'"), "{exchange}");
    let mend = "rabbitmqctl set_permissions -p / writer '^least$' '^least$' ''";
    assert_eq!(exchange["mend"], mend);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_tried_in_turn_and_check_tells_of_each() {
    let secured = shared();
    let folder = Folder::new("nodes");
    let expired = secured.listen(&secured.shown("turn", "IP:127.0.0.1", Valid::Past), &[]);
    let config = format!(
        "{}amqp.urls = ['{}', '{}']\npostgres.url = '{}'\nspool.dir = '{}'\nspool.min_free = '0'\namqp.exchange = 'nodes'\n",
        trusting(secured, &url(expired)),
        url(1),
        url(secured.good()),
        postgres::shared(18).url(Role::Agent),
        folder.path().join("spool").display(),
    );
    let (status, found) = findings(&folder, &config);
    let cause = |id: &str| found[id]["cause"].as_str().unwrap();
    assert!(status == Some(1) && cause("amqp.tls.certificate").contains("expired"), "{found:#?}");
    assert!(cause("amqp.reachable.1").contains("refused") && cause("amqp.login.2").contains("logged in"), "{found:#?}");
    let connection = Connection::any(&amqp(&config)).await.expect("the third lets us in");
    assert!(connection.node().ends_with(&secured.good().to_string()));
    connection.close().await;
    // Unencrypted nodes have no part in it.
    let mixed = config.replace(&url(1), &rabbit::shared().url());
    let (status, found) = findings(&folder, &mixed);
    assert_eq!(status, Some(78));
    assert!(found["configuration"]["cause"].as_str().unwrap().contains("TLS never falls back to plain text"));
}
