//! An operator who reads what `check` prints, types what is to be typed, as it stands there, and looks again.
//!
//! SQL goes to psql, settings into the configuration file, and commands to a shell whose programs lead to the rig's servers:
//! psql by its variables, `rabbitmqctl` and `rabbitmqadmin` to the rig's broker, `systemctl` to whoever starts and stops them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::{
    Folder,
    agent::command,
    postgres::{Role, Server, Stop},
    rabbit::Broker,
    wait_for,
};

/// What `check --json` found, by id.
pub(crate) type Findings = BTreeMap<String, Value>;

/// Who looks after one agent and its servers.
pub(crate) struct Operator<'a> {
    pub(crate) folder: Folder,
    server: &'a Server,
    broker: Option<&'a Broker>,
    /// Arguments of each `check`.
    args: &'static [&'static str],
    /// The beginning of each command line.
    under: Vec<String>,
    /// What was typed that holds for the shell alone.
    typed: RefCell<String>,
}

impl<'a> Operator<'a> {
    /// Of an agent with this configuration, a `table.key = value` each line; `$FOLDER` stands for the operator's.
    pub(crate) fn new(server: &'a Server, broker: Option<&'a Broker>, config: &str) -> Self {
        let folder = Folder::new("operator");
        fs::create_dir(folder.path().join("bin")).unwrap();
        let operator = Self { folder, server, broker, args: &[], under: Vec::new(), typed: RefCell::default() };
        operator.set(config);
        if let Some(broker) = broker {
            operator.shim("rabbitmqctl", &broker.shim("rabbitmqctl"));
            operator.shim("rabbitmqadmin", &broker.admin());
        }
        let ask = operator.at("asked");
        let ask = ask.display();
        let systemctl =
            format!("echo \"$*\" > {ask}.new && mv {ask}.new {ask} && while [ -e {ask} ]; do sleep 0.05; done");
        operator.shim("systemctl", &systemctl);
        operator
    }

    /// With these arguments of `check`.
    pub(crate) fn with(mut self, args: &'static [&'static str]) -> Self {
        self.args = args;
        self
    }

    /// Behind the beginning of a command line.
    pub(crate) fn under(mut self, under: &[&str]) -> Self {
        self.under = under.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program of the operator's own.
    pub(crate) fn shim(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(&self) -> String {
        fs::read_to_string(self.at("agent.toml")).unwrap_or_default()
    }

    /// Puts lines into the configuration, in the place of those of the same keys.
    pub(crate) fn set(&self, lines: &str) {
        let lines = lines.replace("$FOLDER", &self.folder.path().display().to_string());
        let key = |line: &str| line.split(" = ").next().unwrap().trim().to_owned();
        let mut all: Vec<(String, String)> = Vec::new();
        for line in self.config().lines().chain(lines.lines()).filter(|line| !line.trim().is_empty()) {
            all.retain(|(known, _)| *known != key(line));
            all.push((key(line), line.trim().to_owned()));
        }
        let text: String = all.into_iter().map(|(_, line)| line + "\n").collect();
        fs::write(self.at("agent.toml"), text).unwrap();
        fs::set_permissions(self.at("agent.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// Runs `check --json`.
    #[track_caller]
    pub(crate) fn check(&self) -> Findings {
        let check = command(["check", "--json", "--config"]);
        let typed = format!("{} exec \"$@\"", self.typed.borrow());
        let mut run = Command::new("bash");
        run.args(["-c", &typed, "check"]).args(&self.under).arg(check.get_program()).args(check.get_args());
        run.arg(self.at("agent.toml")).args(self.args).stdin(Stdio::null());
        for (name, value) in check.get_envs() {
            match value {
                // The status page is one of the things that are looked at.
                Some(_) if name == "POSTGRES_AGENT_HTTP__LISTEN" => {}
                Some(value) => _ = run.env(name, value),
                None => _ = run.env_remove(name),
            }
        }
        let output = run.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found: Findings = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .map(|finding| (finding["id"].as_str().unwrap().to_owned(), finding))
            .collect();
        assert!(!found.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        for id in found.keys() {
            assert!(is_listed(id), "README.md lists all findings, and not {id}");
        }
        found
    }

    /// Types something that holds for the shell alone, such as a limit.
    pub(crate) fn type_first(&self, line: &str) {
        *self.typed.borrow_mut() += line;
        *self.typed.borrow_mut() += ";";
    }

    /// Types what a finding says, as it stands there.
    #[track_caller]
    pub(crate) fn apply(&self, finding: &Value) {
        let mend = finding["mend"].as_str().unwrap_or_else(|| panic!("nothing mends {finding}"));
        match finding["mend_in"].as_str() {
            Some("psql") => {
                let mut psql = self.server.psql(Role::Postgres, "postgres").stdin(Stdio::piped()).spawn().unwrap();
                psql.stdin.take().unwrap().write_all(mend.as_bytes()).unwrap();
                assert!(psql.wait().unwrap().success(), "psql: {mend}");
            }
            Some("agent.toml") => self.set(mend),
            Some("shell") if mend.starts_with("ulimit ") => self.type_first(mend),
            Some("shell") => self.shell(mend),
            other => panic!("typed into {other:?}: {finding}"),
        }
    }

    #[track_caller]
    fn shell(&self, line: &str) {
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-c", line]).env("PATH", path).env("PGHOST", "127.0.0.1").env("PGUSER", "postgres");
        shell.env("PGPORT", self.server.port().to_string()).env("PGDATABASE", "postgres").env("PGOPTIONS", "");
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let asked = self.at("asked");
        wait_for(&format!("{line} ends"), Duration::from_secs(180), || {
            if let Ok(what) = fs::read_to_string(&asked) {
                self.serve(what.trim());
                fs::remove_file(&asked).unwrap();
            }
            child.try_wait().unwrap().is_some()
        });
        assert!(child.wait().unwrap().success(), "{line}");
    }

    /// Does what systemctl is asked for.
    fn serve(&self, what: &str) {
        match what {
            "start postgresql" => self.server.start(),
            "restart postgresql" => {
                self.server.stop(Stop::Fast);
                self.server.start();
            }
            "start rabbitmq-server" => self.broker.expect("there is a broker").start(),
            other => panic!("systemctl {other}"),
        }
    }

    /// Breaks something, sees the finding, mends it as is printed, and sees it gone.
    #[track_caller]
    pub(crate) fn breaks_and_mends(&self, id: &str, status: &str, spoil: impl FnOnce()) -> Value {
        let well = |found: &Findings| found.get(id).is_none_or(|finding| finding["status"] == "ok");
        let before = self.check();
        assert!(well(&before), "{id} before: {}", before[id]);
        spoil();
        let found = self.check();
        let finding = found.get(id).unwrap_or_else(|| panic!("no {id}: {found:#?}")).clone();
        assert_eq!(finding["status"], status, "{finding}");
        self.apply(&finding);
        let after = self.check();
        assert!(well(&after), "{id} was mended by {}: {}", finding["mend"], after[id]);
        println!("{id}: {} | {}", finding["cause"], finding["mend"]);
        finding
    }
}

/// Whether a finding stands in the README's table; names are in capitals there.
fn is_listed(id: &str) -> bool {
    let readme = include_str!("../../../README.md");
    let ids = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named = |known: &str, name: &str| known.strip_suffix(name).is_some_and(|begin| id.starts_with(begin));
    // Of further nodes of the broker the findings bear their number.
    let of_node = id.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.');
    ids.into_iter().any(|known| known == id || known == of_node || named(known, "NAME") || named(known, "KEY"))
}

/// A program with its environment as a line of a shell.
pub(crate) fn as_line(command: &Command) -> String {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap().replace('\'', r"'\''"));
    let mut words = vec!["exec env".to_owned()];
    words.extend(command.get_current_dir().map(|folder| format!("-C {}", quoted(folder.as_os_str()))));
    // What is taken away stands before what is given: so env wants it.
    let removed = command.get_envs().filter(|(_, value)| value.is_none());
    words.extend(removed.map(|(name, _)| format!("-u {}", name.to_str().unwrap())));
    let given = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    words.extend(given.map(|(name, value)| format!("{}={}", name.to_str().unwrap(), quoted(value))));
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ") + " \"$@\""
}
