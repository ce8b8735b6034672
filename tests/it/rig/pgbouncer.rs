//! A real `PgBouncer`, Debian's 1.18, between a test and a PostgreSQL server.
//!
//! It lends a backend for a transaction, and refuses what it does not know at the start of a connection, `options` among
//! it. Who logs in is trusted.

use std::{
    fs,
    net::TcpStream,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use super::{
    Folder, command_as, free_port,
    postgres::{Role, Server},
    wait_for, warden,
};

const USER: &str = "postgres";

/// One pooler; ended when dropped.
#[derive(Debug)]
pub(crate) struct Pooler {
    port: u16,
    process: Child,
    _folder: Folder,
}

impl Pooler {
    /// In front of a server, with more lines in its `[pgbouncer]` section.
    pub(crate) fn before(server: &Server, settings: &str) -> Self {
        let folder = Folder::new("pgbouncer");
        let port = free_port();
        let users = folder.path().join("users");
        fs::write(&users, "\"agent\" \"\"\n\"plain\" \"\"\n\"postgres\" \"\"\n").unwrap();
        let ini = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\n{settings}\n",
            server.port(),
            users.display()
        );
        fs::write(&ini, text).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = command_as(USER, Path::new("/usr/sbin/pgbouncer"));
        command.arg(&ini).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.process_group(0).spawn().expect("pgbouncer starts: run tests/servers.sh");
        warden::watch(process.id(), warden::Ends::OnKill);
        wait_for("PgBouncer listens", Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, process, _folder: folder }
    }

    /// A connection URI for the database `postgres`, through the pooler.
    pub(crate) fn url(&self, role: Role) -> String {
        format!("postgresql://{}@127.0.0.1:{}/postgres", role.name(), self.port)
    }

    /// A session of somebody else's through the same pooler.
    pub(crate) async fn session(&self, role: Role) -> tokio_postgres::Client {
        let config: tokio_postgres::Config = self.url(role).parse().unwrap();
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
        warden::forget(self.process.id());
    }
}
