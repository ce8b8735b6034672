//! Real PostgreSQL servers, 13 to 18, with `pg_stat_statements` loaded and created.
//!
//! [`shared`] gives one server of each version for all tests; [`Server::private`] one that a test may stop,
//! crash or fill. Who logs in is trusted; the roles are [`Role`]. They listen on 127.0.0.1 and on a socket in
//! [`Server::socket_dir`].

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Folder, command_as, free_port, is_root, must, wait_for, warden};

/// The major versions that the agent promises to work on.
pub(crate) const VERSIONS: [u32; 6] = [13, 14, 15, 16, 17, 18];

const USER: &str = "postgres";
const BOUND: Duration = Duration::from_secs(60);

/// Durability is off: no test here is about what PostgreSQL's own disk survives.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
shared_preload_libraries = 'pg_stat_statements'
max_prepared_transactions = 10
max_connections = 100
shared_buffers = 16MB
fsync = off
full_page_writes = off
synchronous_commit = off
log_destination = 'stderr'
log_line_prefix = '%m [%p] %u@%d '
timezone = 'UTC'
";

const ROLES: &str = "
CREATE EXTENSION pg_stat_statements;
CREATE ROLE agent LOGIN;
GRANT pg_monitor TO agent;
CREATE ROLE plain LOGIN;
";

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A superuser.
    Postgres,
    /// The agent as it should be: `pg_monitor`, nothing else.
    Agent,
    /// A role without any right.
    Plain,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Agent => "agent",
            Self::Plain => "plain",
        }
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Sessions are ended, a checkpoint is written, counters are kept.
    Fast,
    /// Everything ends at once; the next start recovers.
    Immediate,
}

/// One server; stopped and removed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    version: u32,
    port: u16,
    process: Mutex<Option<Child>>,
    folder: Folder,
}

/// The server of a version that all tests of this run share; started by the first who asks. What a test makes
/// there (tables, roles, sessions) carries a name of its own and is taken away again.
pub(crate) fn shared(version: u32) -> &'static Server {
    static SERVERS: [OnceLock<Server>; VERSIONS.len()] = [const { OnceLock::new() }; VERSIONS.len()];
    let place = VERSIONS.iter().position(|known| *known == version).expect("a version from 13 to 18");
    SERVERS[place].get_or_init(|| Server::private(version))
}

impl Server {
    /// A server of the test's own.
    pub(crate) fn private(version: u32) -> Self {
        Self::with_settings(version, "")
    }

    /// A server of the test's own with more lines in its `postgresql.conf`.
    pub(crate) fn with_settings(version: u32, settings: &str) -> Self {
        let folder = Folder::new(&format!("pg{version}"));
        let data = folder.owned_by("data", USER);
        let sockets = folder.owned_by("s", USER);
        let server = Self { version, port: free_port(), process: Mutex::new(None), folder };
        must(server.tool("initdb").arg("-D").arg(&data).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]));
        let own = format!("port = {}\nunix_socket_directories = '{}'\n", server.port, sockets.display());
        fs::write(data.join("postgresql.auto.conf"), format!("{SETTINGS}{own}{settings}\n")).unwrap();
        server.start();
        server.sql(ROLES);
        server
    }

    /// A primary and a standby that follows it: a copy of its data folder, taken while it was stopped.
    pub(crate) fn with_standby(version: u32) -> (Self, Self) {
        let primary = Self::private(version);
        primary.stop(Stop::Fast);
        let folder = Folder::new(&format!("pg{version}s"));
        let sockets = folder.owned_by("s", USER);
        let data = folder.path().join("data");
        must(Command::new("cp").arg("-a").arg(primary.data_dir()).arg(&data));
        let standby = Self { version, port: free_port(), process: Mutex::new(None), folder };
        let own = format!(
            "port = {}\nunix_socket_directories = '{}'\nprimary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n",
            standby.port,
            sockets.display(),
            primary.port
        );
        fs::write(data.join("postgresql.auto.conf"), format!("{SETTINGS}{own}hot_standby = on\n")).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        primary.start();
        standby.start();
        let caught_up = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        wait_for("the standby follows", BOUND, || primary.sql(caught_up) == "1");
        (primary, standby)
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the server wrote to its log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// A connection URI for the database `postgres`.
    pub(crate) fn url(&self, role: Role) -> String {
        format!("postgresql://{}@127.0.0.1:{}/postgres", role.name(), self.port)
    }

    /// Runs SQL as the superuser and returns what `psql -At` prints: a line for each row, columns between `|`.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Like [`Server::sql`], in another database.
    #[track_caller]
    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        must(self.psql(Role::Postgres, database).args(["-c", sql])).trim_end().to_owned()
    }

    /// Debian's psql, ready for `-c` or `-f`, stopping at the first error.
    pub(crate) fn psql(&self, role: Role, database: &str) -> Command {
        let mut psql = Command::new("/usr/bin/psql");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            psql.env_remove(name);
        }
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", role.name()]);
        psql.arg("-p").arg(self.port.to_string()).args(["-d", database]);
        psql
    }

    /// A session that stays: for transactions, locks and whatever must be seen while it lasts. It ends when
    /// the client is dropped.
    pub(crate) async fn session(&self, role: Role, application_name: &str) -> tokio_postgres::Client {
        let mut config: tokio_postgres::Config = self.url(role).parse().unwrap();
        let (client, connection) =
            config.application_name(application_name).connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Starts the server again on the same port and data.
    pub(crate) fn start(&self) {
        let data = self.data_dir();
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut postgres = self.tool("postgres");
        postgres.arg("-D").arg(&data).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = postgres.process_group(0).spawn().expect("postgres starts");
        warden::watch(child.id(), warden::Ends::OnQuit);
        let mut process = self.process.lock().unwrap();
        assert!(process.is_none(), "the server runs already");
        let child = process.insert(child);
        let what = format!("PostgreSQL {} is ready", self.version);
        wait_for(&what, BOUND, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("PostgreSQL {} ended at its start: {status}\n{}", self.version, self.log());
            }
            let state = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            state.lines().nth(7).is_some_and(|line| line.trim() == "ready")
        });
    }

    /// Stops the server; its data stay.
    pub(crate) fn stop(&self, how: Stop) {
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let Some(mut child) = self.process.lock().unwrap().take() else { return };
        kill_process(Pid::from_child(&child), signal).unwrap();
        wait_for("PostgreSQL stops", BOUND, || child.try_wait().unwrap().is_some());
        warden::forget(child.id());
    }

    /// Sends a signal to the postmaster or to one of its backends, STOP and CONT for a server that hangs.
    pub(crate) fn signal(pid: i32, signal: Signal) {
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// A server's program out of the cache, as the user that may run it.
    fn tool(&self, name: &str) -> Command {
        let program = cache().join(format!("postgres-{}/bin/{name}", self.version));
        assert!(program.exists(), "{} is missing: run tests/servers.sh", program.display());
        let mut command = command_as(USER, &program);
        command.env("LC_ALL", "C").current_dir(self.folder.path());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

/// The same folder as in `tests/servers.sh`.
pub(crate) fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("POSTGRES_AGENT_TEST_CACHE") {
        return cache.into();
    }
    if is_root() {
        return "/var/cache/postgres-agent-tests".into();
    }
    Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache/postgres-agent-tests")
}
