//! No secret gets out, by whatever door: hundreds of planted passwords and literals (canaries) are looked for in everything
//! that leaves the agent or is left behind by it. And a secret that is renewed is used without a restart.
//!
//! A canary bears its class in its name: a secret may be nowhere, a literal only in texts that are sent raw. That the
//! literals are found there shows that the others would be found, too.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use lapin::options::BasicGetOptions;
use rustix::process::Signal;

use crate::rig::{
    Folder,
    agent::{Agent, command},
    free_port,
    http::get,
    postgres::{Role, Server},
    proxy::{Line, Proxy},
    tls::{Certificate, Secured, Valid, shared},
    wait_for, wait_for_async,
};

const BOUND: Duration = Duration::from_secs(90);

const SECRET: &str = "kanariS";
const LITERAL: &str = "kanariL";
/// A literal that is a number.
const NUMBER: &str = "7310774";

/// Makes canaries, and counts them.
#[derive(Debug, Default)]
struct Flock {
    secrets: usize,
    literals: BTreeSet<String>,
}

impl Flock {
    fn secret(&mut self) -> String {
        self.secrets += 1;
        format!("{SECRET}{:04}x{}", self.secrets, &uuid::Uuid::new_v4().simple().to_string()[..8])
    }

    fn literal(&mut self) -> String {
        let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let literal = format!("{LITERAL}{:04}x{random}", self.literals.len());
        self.literals.insert(literal.clone());
        literal
    }

    fn number(&mut self) -> String {
        let number = format!("{NUMBER}{:06}", self.literals.len());
        self.literals.insert(number.clone());
        number
    }

    /// A template with `$S`, `$L` and `$N` in it: each becomes a canary.
    fn fill(&mut self, template: &str) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find('$') {
            let (before, after) = rest.split_at(at);
            out.push_str(before);
            match after.as_bytes().get(1) {
                Some(b'S') => out.push_str(&self.secret()),
                Some(b'L') => out.push_str(&self.literal()),
                Some(b'N') => out.push_str(&self.number()),
                _ => {
                    out.push('$');
                    rest = &after[1..];
                    continue;
                }
            }
            rest = &after[2..];
        }
        out + rest
    }
}

/// The canaries of a class in some bytes. One that was cut counts as well.
fn found(bytes: &[u8], class: &str) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(bytes);
    let ends = |c: char| !c.is_ascii_alphanumeric();
    text.match_indices(class).map(|(at, _)| text[at..].split(ends).next().unwrap().to_owned()).collect()
}

/// Utility statements: `pg_stat_statements` has them as they were typed (up to PostgreSQL 15).
const STATEMENTS: &[&str] = &[
    "ALTER ROLE kept PASSWORD '$S'",
    "ALTER ROLE kept ENCRYPTED PASSWORD '$S' VALID UNTIL 'infinity'",
    "ALTER USER kept WITH LOGIN PASSWORD E'$S'",
    "ALTER ROLE kept PASSWORD $$$S$$",
    "ALTER ROLE kept /* because of $L */ PASSWORD\n  '$S'",
    "ALTER USER MAPPING FOR postgres SERVER far OPTIONS (SET password '$S')",
    "ALTER SUBSCRIPTION heard CONNECTION 'host=127.0.0.1 user=u password=$S dbname=d'",
    "ALTER SUBSCRIPTION heard CONNECTION 'host=127.0.0.1 password = $S'",
    "ALTER SUBSCRIPTION heard CONNECTION 'postgresql://u:$S@127.0.0.1/d'",
    "COMMENT ON TABLE stock IS '$L'",
    "COMMENT ON TABLE stock IS E'\\'$L'",
    "COMMENT ON TABLE stock IS 'is $N in password=$S'",
    "DO $do$ BEGIN PERFORM '$L'; END $do$",
    "COPY (SELECT '$L', $N) TO '/dev/null'",
];

/// What sessions do while the agent looks; `WAIT` is a function that takes long. Each fits into what the server keeps of a
/// statement, or is cut within its last literal.
const SESSIONS: &[&str] = &[
    "SELECT WAIT, '$L', '$L', E'\\'$L', $$$L$$, U&'$L', $tag$$L$tag$, 'it''s $L', $N, $N /* $L */ -- $L",
    "SELECT WAIT, 'host=h user=u password=$S dbname=$L', 'postgres://h/d?password=$S', '{\"password=\": \"$S\"}'",
    "SELECT WAIT, '$L' AS a, x FROM (VALUES ('$L', $N), ('$L', $N), ('$L', $N)) AS v(x, y) WHERE y < $N",
    "/* ask $L */ SELECT WAIT, 'ALTER ROLE x PASSWORD=$S', '$L'",
    "WITH w AS (SELECT '$L'::text AS t) SELECT WAIT, t FROM w WHERE t <> '$L' AND t NOT LIKE '%$L%'",
    "SELECT WAIT, 'postgresql://u:$S@h/d', 'amqps://u:$S@h/v?heartbeat=5', '$L'",
    "SELECT WAIT, 'cut short postgresql://u:$SPADDING",
    "SELECT WAIT, 'cut short $L PADDING",
    "SELECT WAIT, 'cut short password=$S PADDING",
    "SELECT WAIT, $$cut short $L PADDING",
    "SELECT WAIT /* cut short $L PADDING",
];

/// Statements that wait for a row, in locks and in activity.
const WAITERS: &[&str] = &[
    "UPDATE stock SET note = '$L', n = $N WHERE id = 1 AND note <> '$L'",
    "UPDATE stock SET note = 'dbname=x password=$S' WHERE id = 1 AND note <> '$L'",
    "DELETE FROM stock WHERE id = 1 AND note <> E'$L\\n' /* $L */",
];

/// Service files of libpq's.
const SERVICES: &[&str] = &[
    "[s]\nhost=127.0.0.1\nport=1\npassword=$S\n",
    "[s]\npassword=$S\nnonsense $S\n",
    "[s]\npassword=$S\nsslmode=$S\n",
    "[s]\npassword=$S\nport=$S\n",
    "[s]\nldap://host/$S\n",
    "[s]\nhost=127.0.0.1\nport=1\npassword=$S\nservice=t\n",
];

/// Sessions and statements with canaries in them. They stay as long as the clients.
async fn plant(server: &Server, flock: &mut Flock) -> Vec<tokio::task::JoinHandle<()>> {
    server.sql(
        "CREATE ROLE kept; CREATE TABLE stock (id int, n bigint, note text); INSERT INTO stock VALUES (1, 1, '');
         CREATE FOREIGN DATA WRAPPER dummy; CREATE SERVER far FOREIGN DATA WRAPPER dummy;
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (password 'none');",
    );
    server.sql("CREATE SUBSCRIPTION heard CONNECTION 'host=h' PUBLICATION p WITH (connect = false, slot_name = NONE)");
    let client = server.session(Role::Postgres, "statements").await;
    for template in STATEMENTS.iter().flat_map(|template| [template; 12]) {
        client.batch_execute(&flock.fill(template)).await.unwrap();
    }
    let mut sessions = Vec::new();
    let mut run = async |text: String| {
        let client = server.session(Role::Postgres, "planted").await;
        sessions.push(tokio::spawn(async move { _ = client.simple_query(&text).await }));
    };
    run(flock.fill("BEGIN; UPDATE stock SET note = '$L password=$S'; SELECT pg_sleep(3600), '$L'")).await;
    let holds = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait_for("the row is held", BOUND, || server.sql(holds) == "1");
    for template in SESSIONS.iter().flat_map(|template| [template; 4]) {
        // The rest of a statement that is longer than what is kept of it closes what it opened.
        let end = match template {
            t if t.contains("$$cut") => "$$",
            t if t.contains("/* cut") => "*/",
            _ => "'",
        };
        let text = template.replace("WAIT", "pg_sleep(3600)").replace("PADDING", &("p".repeat(4000) + end));
        run(flock.fill(&text)).await;
    }
    for template in WAITERS.iter().flat_map(|template| [template; 4]) {
        run(flock.fill(template)).await;
    }
    let count = 1 + 4 * (SESSIONS.len() + WAITERS.len());
    let all = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'planted' AND state = 'active'";
    wait_for("all sessions are active", BOUND, || server.sql(all) == count.to_string());
    sessions
}

fn write(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(draft, path).unwrap();
}

/// The agent's role logs in with its password from now on.
fn demand_passwords(server: &Server) {
    let rules = "host all agent all scram-sha-256\nhost all all all trust\nlocal all all trust\n";
    fs::write(server.data_dir().join("pg_hba.conf"), rules).unwrap();
    server.sql("SELECT pg_reload_conf()");
}

/// One agent's world: its folder, what it is told, and where its secrets lie.
struct World<'a> {
    mode: &'static str,
    folder: Folder,
    server: &'a Server,
    secured: &'a Secured,
    own: &'a Certificate,
    password: &'a str,
    /// The port of its status page.
    page: u16,
    more_urls: Vec<String>,
}

impl World<'_> {
    fn config(&self, port: u16) -> String {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let (pg, unused) = (self.server.port(), self.password);
        let postgres = if self.mode == "raw" {
            let passfile = at("pgpass");
            format!("postgres.url = 'postgresql://agent@127.0.0.1:{pg}/postgres?passfile={passfile}'")
        } else {
            let file = at("postgres.password");
            format!(
                "postgres.url = 'host=127.0.0.1 port={pg} user=agent dbname=postgres password={unused}'\n\
                     postgres.password_file = '{file}'"
            )
        };
        format!(
            "{postgres}\namqp.url = 'amqps://{mode}:{unused}@127.0.0.1:{port}/%2f'\namqp.urls = {urls:?}\n\
             amqp.password_file = '{mqfile}'\namqp.ca_file = '{ca}'\namqp.cert_file = '{cert}'\namqp.key_file = '{key}'\n\
             amqp.exchange = 'canaries-{mode}'\nspool.dir = '{spool}'\nspool.min_free = '0'\nlog.level = 'trace'\n\
             log.format = '{format}'\nprivacy.query_text = '{mode}'\nretry = {{ initial = '50ms', max = '200ms' }}\n\
             [collectors]\npg_activity.interval = '500ms'\npg_locks.interval = '500ms'\npg_statements.interval = '1s'\n\
             pg_statements.limit = 1000\nagent_status.interval = '500ms'\n[http]\nlisten = '127.0.0.1:{page}'\n",
            page = self.page,
            mode = self.mode,
            urls = self.more_urls,
            mqfile = at("amqp.password"),
            ca = self.secured.authority.file().display(),
            cert = self.own.cert.display(),
            key = self.own.key.display(),
            spool = at("spool"),
            format = if self.mode == "raw" { "text" } else { "json" },
        )
    }

    fn write(&self, config: &str) {
        write(&self.folder.path().join("agent.toml"), config);
    }

    fn run(&self, args: &[&str]) -> Vec<u8> {
        let mut command = command(args);
        said(command.arg("--config").arg(self.folder.path().join("agent.toml")))
    }

    /// Everything that a command says with this configuration.
    fn commands(&self) -> Vec<(String, Vec<u8>)> {
        let all: &[&[&str]] = &[
            &["config"],
            &["check"],
            &["check", "--json", "--probe"],
            &["collect"],
            &["collect", "--format", "table"],
            &["spool", "status"],
            &["spool", "verify", "--json"],
            &["spool", "dump"],
            &["tap", "--count", "3", "--seconds", "5"],
        ];
        all.iter().map(|args| (args.join(" "), self.run(args))).collect()
    }

    /// All files of the spool.
    fn spool(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.folder.path().join("spool")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((format!("spool {}", path.display()), fs::read(&path).unwrap()));
                }
            }
        }
        files
    }
}

fn said(command: &mut Command) -> Vec<u8> {
    let Output { stdout, stderr, .. } = command.output().unwrap();
    [stdout, stderr].concat()
}

/// What anybody on the host may see of a process. Its environment is what it was given; that of a child would be another.
fn seen_from_outside(agent: &Agent) -> Vec<(String, Vec<u8>)> {
    let at = format!("/proc/{}", agent.pid());
    let children: Vec<u8> = fs::read_dir(format!("{at}/task"))
        .unwrap()
        .filter_map(|task| fs::read(task.ok()?.path().join("children")).ok())
        .flatten()
        .collect();
    assert_eq!(String::from_utf8_lossy(&children), "", "it starts no other programs");
    ["cmdline", "environ", "comm"]
        .map(|name| (format!("/proc {name}"), fs::read(format!("{at}/{name}")).unwrap()))
        .into()
}

/// Everything that the agent shows at its port.
fn shown(port: u16) -> Vec<(String, Vec<u8>)> {
    let collectors = ["pg_activity", "pg_statements", "pg_locks", "agent_status"];
    let messages = collectors.map(|name| format!("/messages/{name}.json?rows=1000"));
    let paths = ["/", "/page.js", "/healthz", "/readyz", "/metrics", "/status.json"].map(str::to_owned);
    let paths = paths.into_iter().chain(messages);
    paths.map(|path| (format!("shown at {path}"), get(port, &path).body.into_bytes())).collect()
}

/// Runs an agent without, then with its broker, and gives everything that left it or that it left behind.
async fn live(world: &World<'_>) -> Vec<(String, Vec<u8>)> {
    let exchange = format!("canaries-{}", world.mode);
    world.secured.broker.durable_queue(&exchange, &exchange).await;
    // Nobody answers at first: what waits is on disk.
    let away = world.config(1);
    world.write(&away);
    let agent = Agent::start(world.folder.path(), &away);
    let waits = |name: &str| crate::faults::layout::waits(&world.folder.path().join("spool"), name) >= 2;
    let wanted = ["pg_activity", "pg_statements", "pg_locks", "agent_status"];
    wait_for("all of it waits on disk", BOUND, || wanted.iter().all(|name| waits(name)));
    let mut all = [world.spool(), seen_from_outside(&agent), world.commands(), shown(world.page)].concat();
    agent.signal(Signal::HUP);
    wait_for("the configuration is read again", BOUND, || agent.log().contains("was read again"));
    assert!(agent.stop(BOUND).0.success());
    let agent = Agent::start(world.folder.path(), &world.config(world.secured.good()));
    let broker = &world.secured.broker;
    wait_for_async("messages of both runs", BOUND, async || {
        (broker.ready_messages(&exchange).await >= 30).then_some(())
    })
    .await;
    all.extend(world.commands());
    all.extend(shown(world.page));
    all.push(("log".into(), agent.log().into_bytes()));
    assert!(agent.stop(BOUND).0.success());
    let (connection, channel) = broker.channel().await;
    while let Some(message) =
        channel.basic_get(exchange.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    {
        let head = format!("{:?}", message.properties).into_bytes();
        all.push(("message".into(), [head, message.delivery.data].concat()));
    }
    connection.close(200, "done".into()).await.unwrap();
    all
}

/// Configurations that are refused, or that do not get in, and hold a password each. Nothing of them is quoted.
const REFUSED: &[&str] = &[
    "amqp.url = 'amqp://u:$S@h:99999'",
    "amqp.url = 'amqp:/u:$S@h'",
    "amqp.url = 'amqp://u:$S'",
    "amqp.url = 'amqps://u:$S/x@h'",
    "amqp.url = 'amqps://u:$S?x@h'",
    "amqp.url = 'amqps://u?$S@h'",
    "amqp.url = 'amqps://h?$S=1'",
    "amqp.url = 'amqps://h?password=$S'",
    "amqp.url = 'amqps://u:$S%@h'",
    "amqp.url = 'http://u:$S@h'",
    "amqp.url = ['amqp://u:$S@h']",
    "amqp.url = { password = '$S' }",
    "amqp.urls = 'amqp://u:$S@h'",
    "amqp.urls = ['amqp://u:$S@h', 'amqp:/u:$S@h']",
    "amqp.urls = ['amqps://u:$S@h']",
    "amqp.url = \"amqp://u:$S@h",
    "amqp.url = amqp://u:$S@h",
    "amqp.url = 'amqp://u:$S@h'\namqp.url = 'amqp://u:$S@h'",
    "amqp.url = 'amqp://u:$S@h' 'amqp://u:$S@h'",
    "amqp.cert_file = '/x'\namqp.url = 'amqp://u:$S@h'",
    "postgres.url = 'postgres://u:$S@h:99999/d'",
    "postgres.url = 'postgres://u:$S%@h/d'",
    "postgres.url = 'postgres://u:$S@h/d?sslmode=perhaps'",
    "postgres.url = 'postgres://u:$S@h/d?unknown=$S'",
    "postgres.url = 'host=h password=$S sslmode=perhaps'",
    "postgres.url = 'host=h password=$S unknown'",
    "postgres.url = 'host=h password=''$S'",
    "postgres.url = \"host=h password='$S\"",
    "postgres.url = \"host=h password='$S' x\"",
    "postgres.url = 'host=h sslpassword=$S sslmode=perhaps'",
    "postgres.url = ['postgres://u:$S@h/d']",
    "postgres.url = postgres://u:$S@h/d",
    "postgres.url = \"postgres://u:$S@h/d\\q\"",
    "postgres = 'postgres://u:$S@h/d'",
    "amqp = 'amqp://u:$S@h'",
    // They are understood, and nobody lets them in.
    "postgres.url = 'postgres://agent:$S@127.0.0.1:PG/postgres'\namqp.url = 'amqp://guest:$S@127.0.0.1:MQ/%2f'",
    "postgres.url = 'host=127.0.0.1 port=PG user=agent password=$S'\namqp.url = 'amqps://guest:$S@127.0.0.1:TLS/%2f'",
    "postgres.url = 'host=127.0.0.1 port=1 user=agent password=$S'\namqp.url = 'amqp://guest:$S@127.0.0.1:TLS/%2f'",
];

fn refused(flock: &mut Flock, server: &Server, secured: &Secured) -> Vec<(String, Vec<u8>)> {
    let folder = Folder::new("refused");
    let file = folder.path().join("agent.toml");
    let mut all = Vec::new();
    for template in REFUSED {
        let ports = [("PG", server.port()), ("MQ", secured.broker.port()), ("TLS", secured.good())];
        let place = |text: String, (name, port): &(&str, u16)| text.replace(&format!(":{name}"), &format!(":{port}"));
        let text =
            ports.iter().fold((*template).to_owned(), place).replace("port=PG", &format!("port={}", server.port()));
        write(&file, &(flock.fill(&text) + "\nlog.level = 'trace'\nspool.dir = '/proc/no'\n"));
        for args in [&["config"][..], &["check"], &["check", "--json"], &["collect"]] {
            all.push((template.to_string(), said(command(args).arg("--config").arg(&file))));
        }
        // The same by the environment.
        let Some((key, value)) = template.split_once(" = '").filter(|_| !template.contains('\n')) else { continue };
        let variable = format!("POSTGRES_AGENT_{}", key.replace('.', "__").to_uppercase());
        let value = flock.fill(value.trim_end_matches('\''));
        all.push((format!("{template} by ${variable}"), said(command(["config"]).env(&variable, &value))));
        if key == "amqp.url" {
            all.push((format!("{template} by $AMQP_URL"), said(command(["config"]).env("AMQP_URL", &value))));
        }
    }
    for (variable, value) in [("PGPASSWORD", "$S"), ("PGSSLMODE", "$S"), ("POSTGRES_AGENT_X", "$S")] {
        let value = flock.fill(value);
        all.push((variable.into(), said(command(["config"]).env(variable, &value))));
        all.push((
            variable.into(),
            said(command(["check"]).env(variable, value).env("PGPORT", "1").env("PGHOST", "127.0.0.1")),
        ));
    }
    // libpq's own files: whole ones, and ones that are refused for a line in them.
    for text in SERVICES {
        write(&file, &flock.fill(text));
        for args in [["config"], ["check"], ["collect"]] {
            let mut command = command(args);
            command.env("PGSERVICE", "s").env("PGSERVICEFILE", &file);
            all.push((format!("the service file {text:?}"), said(&mut command)));
        }
    }
    for mode in [0o600, 0o644] {
        write(&file, &flock.fill("127.0.0.1:1:*:*:$S\n$S\n::$S\nlocalhost:*:*:*:$S\\\n"));
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        for args in [["config"], ["check"], ["collect"]] {
            let mut command = command(args);
            command.env("PGPASSFILE", &file).env("PGHOST", "127.0.0.1").env("PGPORT", "1");
            all.push((format!("a pass file of mode {mode:o}"), said(&mut command)));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn of_hundreds_of_planted_secrets_and_literals_none_gets_out() {
    let secured = tokio::task::block_in_place(shared);
    let server = tokio::task::block_in_place(|| Server::with_settings(15, "password_encryption = 'scram-sha-256'"));
    let mut flock = Flock::default();
    let sessions = plant(&server, &mut flock).await;
    let own = secured.authority.issue("canaries", "canaries", "DNS:agent", Valid::Now);
    let key = fs::read_to_string(&own.key).unwrap();
    let key: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    demand_passwords(&server);

    let (mut places, mut literals_sent) = (0, BTreeSet::new());
    let mut look = |what: &str, bytes: &[u8], raw: bool| {
        places += 1;
        let secrets = found(bytes, SECRET);
        assert!(secrets.is_empty(), "{what}: {secrets:?}\n{}", String::from_utf8_lossy(bytes));
        let literals = &found(bytes, LITERAL) | &found(bytes, NUMBER);
        assert!(raw || literals.is_empty(), "{what}: {literals:?}");
        let text = String::from_utf8_lossy(bytes);
        assert!(!key.iter().any(|line| text.contains(line)), "{what}: the private key");
        literals
    };
    for mode in ["raw", "normalized", "off"] {
        let password = flock.secret();
        server.sql(&format!("ALTER ROLE agent PASSWORD '{password}'"));
        let broker_password = flock.secret();
        tokio::task::block_in_place(|| {
            secured.broker.ctl(&["add_user", mode, &broker_password]);
            secured.broker.ctl(&["set_permissions", mode, ".*", ".*", ".*"]);
        });
        let unused = flock.secret();
        let more_urls = (0..20).map(|n| flock.fill(&format!("amqps://u{n}:$S@127.0.0.1:1/%2f?heartbeat=5"))).collect();
        let folder = Folder::new(mode);
        let world = World {
            mode,
            folder,
            server: &server,
            secured,
            own: &own,
            password: &unused,
            page: free_port(),
            more_urls,
        };
        write(&world.folder.path().join("postgres.password"), &format!("{password}\n"));
        write(&world.folder.path().join("amqp.password"), &format!("{broker_password}\n"));
        let others = (0..30).map(|n| flock.fill(&format!("127.0.0.1:{n}:*:agent:$S\n"))).collect::<String>();
        write(&world.folder.path().join("pgpass"), &format!("{others}*:*:*:agent:{password}\n"));
        for (what, bytes) in live(&world).await {
            literals_sent.extend(look(&format!("{mode}: {what}"), &bytes, mode == "raw"));
        }
        let config = postgres_agent::config::load(Some(&world.folder.path().join("agent.toml"))).unwrap();
        look("what a panic could show", format!("{config:?}").as_bytes(), false);
    }
    // What was cut is not counted.
    let (planted, sent) = (flock.literals.len(), (&literals_sent & &flock.literals).len());
    assert!(
        sent * 100 >= planted * 90,
        "{sent} of {planted} literals are sent raw: the others would not be found either"
    );
    for (what, bytes) in refused(&mut flock, &server, secured) {
        look(&what, &bytes, false);
    }
    sessions.iter().for_each(tokio::task::JoinHandle::abort);
    let secrets = flock.secrets;
    println!(
        "figure: {secrets} secrets and {planted} literals planted, {places} places searched: 0 secrets found, 0 literals where \
         texts are normalized or off ({sent} where they are raw)"
    );
    assert!(secrets + planted >= 500);
}

/// Log and `check` tell of `amqp.password_file` that others may read, and of nothing else.
fn told_of(agent: &Agent, folder: &Path, file: &Path) {
    let (log, mend) = (agent.log(), format!("chmod 0600 {}", file.display()));
    let told: Vec<&str> = log.lines().filter(|line| line.contains("(mode 0")).collect();
    assert!(told.len() == 1 && told[0].contains(&mend) && told[0].contains("amqp.password_file"), "{told:?}\n{log}");
    let checked = said(command(["check", "--json", "--config"]).arg(folder.join("agent.toml")));
    let checked = String::from_utf8(checked).unwrap();
    let finding = checked.lines().find(|line| line.contains("amqp.password_file")).unwrap();
    assert!(finding.contains("\"warning\"") && finding.contains(&mend), "{finding}");
    assert!(!checked.contains("postgres.password_file"), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_passwords_are_used_without_a_restart_and_files_that_others_may_read_are_told() {
    const QUEUE: &str = "renewed";
    let secured = tokio::task::block_in_place(shared);
    let server = tokio::task::block_in_place(|| Server::private(17));
    let (broker, folder) = (&secured.broker, Folder::new(QUEUE));
    broker.durable_queue(QUEUE, QUEUE).await;
    let (pg_file, mq_file) = (folder.path().join("pg"), folder.path().join("mq"));
    let renew = |password: &str| {
        tokio::task::block_in_place(|| {
            server.sql(&format!("ALTER ROLE agent PASSWORD '{password}'"));
            broker.ctl(&["change_password", QUEUE, password]);
        });
    };
    tokio::task::block_in_place(|| {
        broker.ctl(&["add_user", QUEUE, "none"]);
        broker.ctl(&["set_permissions", QUEUE, "", "^renewed$", ""]);
    });
    renew("first-hunter2");
    demand_passwords(&server);
    write(&pg_file, "first-hunter2\n");
    write(&mq_file, "first-hunter2\n");
    fs::set_permissions(&mq_file, fs::Permissions::from_mode(0o644)).unwrap();
    let line = Proxy::to(secured.good()).await;
    let config = format!(
        "postgres.url = 'host=127.0.0.1 port={} user=agent dbname=postgres'\npostgres.password_file = '{}'\n\
         amqp.url = 'amqps://{QUEUE}@127.0.0.1:{}/%2f'\namqp.ca_file = '{}'\namqp.password_file = '{}'\n\
         amqp.exchange = '{QUEUE}'\namqp.declare = false\nspool.dir = '{}'\nspool.min_free = '0'\n\
         retry = {{ initial = '50ms', max = '200ms' }}\ncollectors.pg_locks.interval = '200ms'\n",
        server.port(),
        pg_file.display(),
        line.port(),
        secured.authority.file().display(),
        mq_file.display(),
        folder.path().join("spool").display(),
    );
    let agent = Agent::start(folder.path(), &config);
    let more = async |what: &str| {
        let before = broker.ready_messages(QUEUE).await;
        wait_for_async(what, BOUND, async || (broker.ready_messages(QUEUE).await > before + 5).then_some(())).await;
    };
    more("it flows").await;
    told_of(&agent, folder.path(), &mq_file);

    renew("second-hunter2");
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'agent'";
    server.sql(ended);
    line.set(Line::Cut);
    line.set(Line::Open);
    wait_for("both logins are refused", BOUND, || {
        let log = agent.log();
        log.contains("password authentication failed") && log.contains("refused user")
    });
    write(&pg_file, "second-hunter2\n");
    write(&mq_file, "second-hunter2\n");
    more("it flows again").await;
    let rows = "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'agent'";
    wait_for("the database lets it in again", BOUND, || server.sql(rows) == "t");
    let log = agent.log();
    assert!(!log.contains("hunter2") && log.matches(" started").count() == 1, "{log}");
    assert!(agent.stop(BOUND).0.success());
}
