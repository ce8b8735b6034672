//! `sslmode` with real certificates: each mode accepts what libpq's accepts, and nothing else.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    looking::database,
    rig::{Folder, postgres::Server, wait_for_async},
};

const BOUND: Duration = Duration::from_secs(20);

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two authorities, and certificates of the first for the server `db.test` and for the client `agent`.
fn certificates() -> Folder {
    let folder = Folder::new("tls");
    let at = folder.path();
    for (name, subject) in [("ca", "/CN=authority"), ("other", "/CN=somebody else")] {
        let subject = subject.replace(' ', "_");
        openssl(
            at,
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj {subject} -keyout {name}.key -out {name}.crt"),
        );
    }
    std::fs::write(at.join("names"), "subjectAltName=DNS:db.test").unwrap();
    for (name, subject, extra) in [("server", "/CN=db.test", " -extfile names"), ("client", "/CN=agent", "")] {
        openssl(at, &format!("req -new -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"));
        openssl(
            at,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out {name}.crt{extra}"
            ),
        );
    }
    folder
}

struct Tls {
    server: Server,
    files: Folder,
}

impl Tls {
    fn start() -> Self {
        let (server, files) = (Server::private(17), certificates());
        for name in ["server.key", "server.crt", "ca.crt"] {
            let mut install = Command::new("install");
            install.args(["-m", "600"]);
            if rustix::process::geteuid().is_root() {
                install.args(["-o", "postgres"]);
            }
            let done = install.arg(files.path().join(name)).arg(server.data_dir().join(name)).status().unwrap();
            assert!(done.success());
        }
        server.sql("ALTER SYSTEM SET ssl = on");
        server.sql("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'");
        Self { server, files }
    }

    /// Lets `agent` in by these lines of `pg_hba.conf`; waits until the server does.
    async fn rules(&self, lines: &str) {
        let rules = format!("{lines}\nhost all postgres all trust\nlocal all all trust\n");
        std::fs::write(self.server.data_dir().join("pg_hba.conf"), rules).unwrap();
        self.server.sql("SELECT pg_reload_conf()");
        wait_for_async("the rules are read", BOUND, || async {
            let loaded = "SELECT pg_conf_load_time() > now() - interval '1 minute' AND current_setting('ssl') = 'on'";
            (self.server.sql(loaded) == "t").then_some(())
        })
        .await;
    }

    /// Whether the connection is encrypted, or why there is none.
    async fn connect(&self, parameters: &str) -> Result<bool, String> {
        let files = self.files.path().display().to_string();
        let parameters = parameters.replace("FILES", &files);
        let url = format!("hostaddr=127.0.0.1 port={} user=agent dbname=postgres {parameters}", self.server.port());
        let database = database(&[("postgres.url", &url)]);
        let told = |error: postgres_agent::postgres::Error| error.to_string();
        let mut session = database.session("test").await.map_err(told)?;
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let rows = session.query("test", sql, &[]).await.map_err(told)?;
        rows[0].get(0).map_err(told)
    }

    #[track_caller]
    fn refused(got: Result<bool, String>, want: &str) {
        let error = got.expect_err(want);
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sslmode_accepts_what_libpqs_accepts() {
    let tls = Tls::start();
    tls.rules("host all agent all trust").await;
    assert_eq!(tls.connect("host=db.test sslmode=disable").await, Ok(false));
    assert_eq!(tls.connect("host=db.test sslmode=allow").await, Ok(false));
    for encrypted in [
        "host=db.test sslmode=prefer",
        "host=db.test sslmode=require",
        "sslmode=require",
        "host=db.test sslmode=require sslrootcert=FILES/ca.crt",
        "host=other.test sslmode=verify-ca sslrootcert=FILES/ca.crt",
        "host=db.test sslmode=verify-full sslrootcert=FILES/ca.crt",
        "host=db.test sslmode=require sslcert=FILES/client.crt sslkey=FILES/client.key",
    ] {
        assert_eq!(tls.connect(encrypted).await, Ok(true), "{encrypted}");
    }
    for (parameters, want) in [
        ("host=db.test sslmode=require sslrootcert=FILES/other.crt", "certificate"),
        ("host=db.test sslmode=verify-ca sslrootcert=FILES/other.crt", "certificate"),
        ("host=db.test sslmode=verify-full sslrootcert=FILES/other.crt", "certificate"),
        ("host=other.test sslmode=verify-full sslrootcert=FILES/ca.crt", "not valid for name"),
        ("sslmode=verify-full sslrootcert=FILES/ca.crt", "not valid for name"),
        ("host=db.test sslmode=verify-ca sslrootcert=FILES/none.crt", "none.crt"),
        ("host=db.test sslmode=verify-full sslrootcert=system", "certificate"),
        ("host=db.test sslmode=require sslcert=FILES/server.crt sslkey=FILES/client.key", "not the key"),
        ("host=db.test sslmode=require sslcert=FILES/client.crt sslkey=FILES/names", "client key"),
    ] {
        Tls::refused(tls.connect(parameters).await, want);
    }
    // Where the certificate is not trusted, prefer goes without, as in libpq.
    assert_eq!(tls.connect("host=db.test sslmode=prefer sslrootcert=FILES/other.crt").await, Ok(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_demands_is_met_where_the_mode_allows_it() {
    let tls = Tls::start();
    tls.rules("hostssl all agent all trust").await;
    assert_eq!(tls.connect("host=db.test sslmode=allow").await, Ok(true));
    Tls::refused(tls.connect("host=db.test sslmode=disable").await, "pg_hba.conf");
    tls.rules("hostnossl all agent all trust").await;
    assert_eq!(tls.connect("host=db.test sslmode=prefer").await, Ok(false));
    Tls::refused(tls.connect("host=db.test sslmode=require").await, "pg_hba.conf");
    tls.rules("hostssl all agent all cert").await;
    let client = "host=db.test sslmode=require sslcert=FILES/client.crt sslkey=FILES/client.key";
    assert_eq!(tls.connect(client).await, Ok(true));
    Tls::refused(tls.connect("host=db.test sslmode=require").await, "certificate");
    tls.rules("host all agent all scram-sha-256").await;
    tls.server.sql("SET password_encryption = 'scram-sha-256'; ALTER ROLE agent PASSWORD 'secret'");
    let bound = "host=db.test password=secret channel_binding=require";
    assert_eq!(tls.connect(bound).await, Ok(true));
    Tls::refused(tls.connect("host=db.test password=wrong sslmode=require").await, "password authentication failed");
}
