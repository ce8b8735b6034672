//! What the cases connect to: real servers with real certificates, and three that only pretend to be servers.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use super::{cases::Case, certificates};
use crate::rig::{
    Folder, free_port, is_root, must,
    postgres::{Server, Stop},
    wait_for,
};

const BOUND: Duration = Duration::from_secs(20);

/// Who gets in, and how; the role says it.
const RULES: &str = "
local     all postgres,trusty     trust
local     all me                  peer
local     all scram               scram-sha-256
local     all clear               password
host      all postgres,trusty all trust
hostssl   all tls             all trust
hostnossl all notls           all trust
host      all scram           all scram-sha-256
host      all scram2          all scram-sha-256
host      all md5             all md5
host      all clear           all password
hostssl   all scramtls        all scram-sha-256
hostnossl all scramplain      all scram-sha-256
hostssl   all certy           all cert
hostssl   all shown           all trust clientcert=verify-ca
host      all denied          all reject
";

const ROLES: &str = r"
CREATE ROLE trusty LOGIN; CREATE ROLE tls LOGIN; CREATE ROLE notls LOGIN; CREATE ROLE certy LOGIN;
CREATE ROLE shown LOGIN; CREATE ROLE denied LOGIN; CREATE ROLE stranger LOGIN;
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram LOGIN PASSWORD 'secret'; CREATE ROLE scram2 LOGIN PASSWORD 'it''s a \ : % @ secret';
CREATE ROLE scramtls LOGIN PASSWORD 'secret'; CREATE ROLE scramplain LOGIN PASSWORD 'secret';
CREATE ROLE clear LOGIN PASSWORD 'secret';
SET password_encryption = 'md5';
CREATE ROLE md5 LOGIN PASSWORD 'secret';
";

/// All of them.
pub(super) struct Stands {
    files: Folder,
    /// Version 18 with TLS: the one whose certificate changes.
    newest: Server,
    certificate: &'static str,
    others: Vec<Server>,
    words: Vec<(&'static str, String)>,
}

impl Stands {
    pub(super) fn start() -> Self {
        let files = certificates::make();
        let name = format!("@pga-{}", std::process::id());
        let newest = Server::private(18);
        let middle = Server::with_settings(17, &format!("unix_socket_directories = '{name}'"));
        let older = Server::private(16);
        let bare = Server::private(15);
        let (primary, standby) = Server::with_standby(14);
        for server in [&newest, &middle, &older] {
            install(&files, server, "db", "server.crt");
            install(&files, server, "ca", "ca.crt");
            settle(server, "ssl = on, ssl_ca_file = 'ca.crt'");
        }
        for server in [&newest, &middle, &older, &bare, &primary] {
            server.sql(ROLES);
            server.sql("CREATE DATABASE other");
            server.sql(&format!("CREATE ROLE \"{}\" LOGIN", user()));
            let rules = RULES.replace(" me ", &format!(" \"{}\" ", user()));
            fs::write(server.data_dir().join("pg_hba.conf"), rules).unwrap();
            settle(server, "");
        }
        let words = vec![
            ("$NAMED", "$ANY port=$18 $CA sslmode=verify-full".into()),
            ("$BARE", "$ANY host=127.0.0.1 port=$OFF".into()),
            ("$BOSS", "host=127.0.0.1 dbname=postgres user=postgres".into()),
            ("$TWO", "host=127.0.0.1,127.0.0.1".into()),
            ("$CERT", "sslcert=$FILES/client.crt".into()),
            ("$ANY", "user=trusty dbname=postgres".into()),
            ("$DB", "host=db.test hostaddr=127.0.0.1 port=$18 dbname=postgres".into()),
            ("$IP", "host=127.0.0.1 port=$18 dbname=postgres".into()),
            ("$CA", "sslrootcert=$FILES/ca.crt".into()),
            ("$18", newest.port().to_string()),
            ("$17", middle.port().to_string()),
            ("$16", older.port().to_string()),
            ("$OFF", bare.port().to_string()),
            ("$PRIMARY", primary.port().to_string()),
            ("$STANDBY", standby.port().to_string()),
            ("$DEAD", free_port().to_string()),
            ("$WEB", pretend(b"HTTP/1.1 400 Bad Request\r\n\r\n").to_string()),
            ("$SHUT", pretend(b"").to_string()),
            ("$SILENT", silent().to_string()),
            ("$FILES", files.path().display().to_string()),
            ("$SOCKET", newest.socket_dir().display().to_string()),
            ("$ENCODED", newest.socket_dir().display().to_string().replace('/', "%2F")),
            ("$ABSTRACT", name),
            ("$USER", user()),
        ];
        homes(&files, &words);
        let others = vec![middle, older, bare, primary, standby];
        Self { files, newest, certificate: "db", others, words }
    }

    /// A text with the ports and folders of this run.
    pub(super) fn filled(&self, text: &str) -> String {
        filled(text, &self.words)
    }

    /// A home folder; one that was not made is empty.
    pub(super) fn home(&self, name: &str) -> PathBuf {
        self.files.path().join("homes").join(name)
    }

    /// Gives the newest server another certificate.
    pub(super) fn show(&mut self, certificate: &'static str) {
        if self.certificate != certificate {
            install(&self.files, &self.newest, certificate, "server.crt");
            settle(&self.newest, "");
            self.certificate = certificate;
        }
    }

    /// The environment of a case: nothing else is set.
    pub(super) fn environment(&self, case: &Case) -> BTreeMap<String, String> {
        const LOCATED: &[(&str, &str)] =
            &[("PGHOST", "127.0.0.1"), ("PGPORT", "$18"), ("PGUSER", "trusty"), ("PGDATABASE", "postgres")];
        let located = if case.located { LOCATED } else { &[] };
        let said = located.iter().chain(case.variables).map(|(name, value)| ((*name).to_owned(), self.filled(value)));
        said.chain([("HOME".to_owned(), self.home(case.home).display().to_string())]).collect()
    }
}

impl Drop for Stands {
    fn drop(&mut self) {
        for server in &self.others {
            server.stop(Stop::Immediate);
        }
    }
}

fn filled(text: &str, words: &[(&'static str, String)]) -> String {
    words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
}

/// The operating system's name of who runs the tests.
pub(super) fn user() -> String {
    must(Command::new("id").arg("-un")).trim().to_owned()
}

/// Puts a certificate and the key of all of them where the server reads them.
fn install(files: &Folder, server: &Server, name: &str, to: &str) {
    for (from, to) in [(format!("{name}.crt"), to), ("server.key".to_owned(), "server.key")] {
        let mut install = Command::new("install");
        install.args(["-m", "600"]);
        if is_root() {
            install.args(["-o", "postgres"]);
        }
        must(install.arg(files.path().join(from)).arg(server.data_dir().join(to)));
    }
}

/// Has the server read its files and these settings anew, and waits until a new session sees them.
fn settle(server: &Server, settings: &str) {
    for setting in settings.split(", ").filter(|setting| !setting.is_empty()) {
        server.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    let loaded = || server.sql("SELECT pg_conf_load_time()");
    let before = loaded();
    server.sql("SELECT pg_reload_conf()");
    wait_for("the server has read its files anew", BOUND, || loaded() != before);
    let wrong = server.sql("SELECT line_number, error FROM pg_hba_file_rules WHERE error NOT LIKE '%SSL is disabled'");
    assert_eq!(wrong, "", "pg_hba.conf");
}

/// Home folders with what libpq looks for in them.
fn homes(files: &Folder, words: &[(&'static str, String)]) {
    let homes = files.path().join("homes");
    let write = |home: &str, name: &str, mode: u32, text: &str| {
        let path = homes.join(home).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, filled(text, words)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let copy = |home: &str, from: &str, name: &str| {
        let text = fs::read_to_string(files.path().join(from)).unwrap();
        write(home, &format!(".postgresql/{name}"), 0o600, &text);
    };
    fs::create_dir_all(homes.join("empty")).unwrap();
    let passwords = "# a comment\nlocalhost:*:*:clear:secret\n127.0.0.1:$18:postgres:scram:secret\n\
                     127.0.0.1:*:*:md5:wrong\n*:*:*:md5:secret\n\
                     db.test:*:*:scram2:it's a \\\\ \\: % @ secret\n$SOCKET:*:*:scram:secret\n\
                     *:$17:*:scram:\n*:$17:*:scram:secret\n";
    write("passwords", ".pgpass", 0o600, passwords);
    write("loose", ".pgpass", 0o644, passwords);
    let services = "# ours\n[tls]\nhost=db.test\nhostaddr=127.0.0.1\nport=$18\nuser=tls\ndbname=postgres\n\
                    sslmode=verify-full\nsslrootcert=$FILES/ca.crt\n\
                    [off]\nhost=127.0.0.1\nport=$OFF\nuser=trusty\nuser=denied\ndbname=other\n\
                    [broken]\nhost = 127.0.0.1\n[nested]\nservice=tls\n[ldap]\nldap://127.0.0.1/x\n";
    write("services", ".pg_service.conf", 0o644, services);
    write("long", ".pg_service.conf", 0o644, &format!("[tls]\n# {}\n", "x".repeat(1100)));
    write(
        "system",
        "pg_service.conf",
        0o644,
        "[sys]\nhost=127.0.0.1\nport=$OFF\nuser=trusty\ndbname=postgres\n[tls]\nport=1\n",
    );
    copy("trusting", "ca.crt", "root.crt");
    copy("mistaken", "other.crt", "root.crt");
    copy("revoking", "ca.crt", "root.crt");
    copy("revoking", "ca.crl", "root.crl");
    copy("showing", "client.crt", "postgresql.crt");
    copy("showing", "client.key", "postgresql.key");
    copy("keyless", "client.crt", "postgresql.crt");
}

/// A port where each connection is answered with the same bytes, once something came in, and closed.
fn pretend(answer: &'static [u8]) -> u16 {
    serve(move |mut stream| {
        let mut question = [0; 64];
        let _read = stream.read(&mut question);
        let _written = stream.write_all(answer);
    })
}

/// A port where nobody ever says anything.
fn silent() -> u16 {
    serve(|mut stream| {
        let mut question = [0; 64];
        while stream.read(&mut question).is_ok_and(|bytes| bytes > 0) {}
    })
}

fn serve(each: impl Fn(std::net::TcpStream) + Send + Copy + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || each(stream));
        }
    });
    port
}
