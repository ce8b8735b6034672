//! The built binary: as a command that ends by itself, or as the sidecar that runs until it is stopped.
//!
//! Nothing of the environment that the agent would read gets through: what a test wants to say, it says. It listens nowhere
//! unless its configuration has a table `[http]`.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::warden;

/// The binary: the one that was built beside whoever asks, unless `POSTGRES_AGENT_BINARY` names another.
pub(crate) fn binary() -> OsString {
    std::env::var_os("POSTGRES_AGENT_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_postgres-agent").into())
}

/// The binary with arguments, ready to run, in an environment without `PG*`, `AMQP*` and `POSTGRES_AGENT*`.
pub(crate) fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    command_under(&[], args)
}

fn command_under<A: AsRef<OsStr>>(under: &[String], args: impl IntoIterator<Item = A>) -> Command {
    let mut command = match under {
        [] => Command::new(binary()),
        [program, more @ ..] => {
            let mut command = Command::new(program);
            command.args(more).arg(binary());
            command
        }
    };
    let heard = |name: &str| ["PG", "AMQP", "POSTGRES_AGENT"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| heard(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    // One port for all agents of this host would be a tale in each one's log.
    command.env("POSTGRES_AGENT_HTTP__LISTEN", "");
    command.args(args).stdin(Stdio::null());
    command
}

/// A running sidecar; ended with kill -9 when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Writes `config` to `agent.toml` in `folder` and starts `run` with it. The log goes to `agent.log` there,
    /// behind what an earlier run wrote.
    pub(crate) fn start(folder: &Path, config: &str) -> Self {
        Self::start_under(&[], folder, config)
    }

    /// Behind the beginning of a command line, whose process becomes the agent in the end.
    pub(crate) fn start_under(under: &[String], folder: &Path, config: &str) -> Self {
        let file = folder.join("agent.toml");
        fs::write(&file, config).unwrap();
        let log = folder.join("agent.log");
        let output = fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut run = command_under(under, ["run", "--config"]);
        if config.contains("[http]") {
            run.env_remove("POSTGRES_AGENT_HTTP__LISTEN");
        }
        run.arg(&file).stdout(output.try_clone().unwrap()).stderr(output).current_dir(folder);
        let child = run.spawn().unwrap();
        warden::watch(child.id(), warden::Ends::OnKill);
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the agent, and the ones before it in this folder, logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// The exit status, if the agent has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends the agent with kill -9.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Asks the agent to stop, and returns how it ended and how long that took; panics after `bound`.
    #[track_caller]
    pub(crate) fn stop(mut self, bound: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::TERM);
        // Looked at more often than elsewhere: some want to know how long it took.
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(start.elapsed() < bound, "waited {bound:?} in vain: the agent stops after SIGTERM");
            std::thread::sleep(Duration::from_millis(1));
        };
        (status, start.elapsed())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        warden::forget(self.child.id());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}
