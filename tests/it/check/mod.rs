//! `check`, finding by finding: each is broken on real servers, seen, mended by what is printed, as it is printed, and seen
//! gone.

mod broker;
mod database;
mod extension;
mod host;

use std::{fs, path::Path};

use crate::rig::{
    operator::Operator,
    postgres::{Role, Server},
};

/// The agent logs in with its password from now on; everybody else is trusted.
fn demand_passwords(server: &Server, password: &str) {
    server.sql(&format!("ALTER ROLE agent PASSWORD '{password}'"));
    rules(server, "host all agent all scram-sha-256\nhost all all all trust\nlocal all all trust\n");
}

/// Who may log in.
fn rules(server: &Server, lines: &str) {
    fs::write(server.data_dir().join("pg_hba.conf"), lines).unwrap();
    server.sql("SELECT pg_reload_conf()");
}

/// A file with a secret in it.
fn secret(path: &Path, text: &str) {
    fs::write(path, format!("{text}\n")).unwrap();
    std::process::Command::new("chmod").arg("0600").arg(path).status().unwrap();
}

/// What all is well with, but for the broker: nobody is there.
fn config(server: &Server) -> String {
    format!(
        "postgres.url = '{}'\namqp.url = 'amqp://127.0.0.1:1/%2f'\nspool.dir = '$FOLDER/spool'\nspool.min_free = '0'\n\
         http.listen = ''\n",
        server.url(Role::Agent)
    )
}

/// An operator whose agent logs in with a password out of a file.
fn with_password<'a>(server: &'a Server, password: &str) -> Operator<'a> {
    let operator = Operator::new(server, None, &config(server));
    secret(&operator.at("word"), password);
    demand_passwords(server, password);
    operator.set("postgres.password_file = '$FOLDER/word'");
    operator
}
