//! A real RabbitMQ, Debian's, apart from the system's own: node name, ports, cookie and data are its own.
//!
//! Every port (AMQP, distribution, epmd) is on 127.0.0.1. An outage is [`Broker::stop`] or [`Broker::kill`] and
//! then [`Broker::start`]: ports and data stay, so durable queues and persistent messages come back.
//! A start takes some seconds of CPU, so tests share one broker where they can, each with its own exchange.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{Folder, command_as, free_port, must, operator::as_line, wait_for, warden};

const USER: &str = "rabbitmq";
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
const BOUND: Duration = Duration::from_secs(120);

/// One broker; ended and removed when dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    admin_port: u16,
    home: PathBuf,
    node: Mutex<Option<Child>>,
    epmd: Mutex<Child>,
    folder: Folder,
}

/// The broker that all tests of this run share. Nobody stops it; exchanges and queues carry the test's name.
pub(crate) fn shared() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::private)
}

impl Broker {
    /// A broker of the test's own, to be stopped and killed.
    pub(crate) fn private() -> Self {
        Self::with_settings("")
    }

    /// A broker of the test's own with more lines in its `rabbitmq.conf`.
    pub(crate) fn with_settings(settings: &str) -> Self {
        Self::with_plugins(&[], settings)
    }

    /// A broker of the test's own that `rabbitmqadmin` can talk to.
    pub(crate) fn with_admin() -> Self {
        Self::with_plugins(&["rabbitmq_management"], "")
    }

    /// As [`Broker::with_settings`], with these plugins of Debian's.
    pub(crate) fn with_plugins(plugins: &[&str], settings: &str) -> Self {
        let folder = Folder::new("mq");
        let home = folder.owned_by("home", USER);
        let port = free_port();
        let admin_port = free_port();
        let own = format!("listeners.tcp.1 = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n");
        let admin = format!("management.tcp.port = {admin_port}\nmanagement.tcp.ip = 127.0.0.1\n");
        let own = if plugins.contains(&"rabbitmq_management") { own + &admin } else { own };
        fs::write(folder.path().join("rabbitmq.conf"), format!("{own}{settings}\n")).unwrap();
        fs::write(folder.path().join("env.conf"), "").unwrap();
        fs::write(folder.path().join("enabled_plugins"), format!("[{}].\n", plugins.join(","))).unwrap();
        let epmd_port = free_port();
        // In the foreground: the daemon that a node would start itself outlives it.
        let mut epmd = command_as(USER, Path::new("/usr/bin/epmd"));
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()])
            .env("ERL_EPMD_RELAXED_COMMAND_CHECK", "1");
        let epmd = epmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        let epmd = epmd.expect("epmd starts: run tests/servers.sh");
        warden::watch(epmd.id(), warden::Ends::OnKill);
        wait_for("epmd listens", BOUND, || TcpStream::connect(("127.0.0.1", epmd_port)).is_ok());
        let (node, epmd) = (Mutex::new(None), Mutex::new(epmd));
        let broker = Self { port, dist_port: free_port(), epmd_port, admin_port, home, node, epmd, folder };
        broker.start();
        broker
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where the agent connects to.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts the node, again or for the first time, and waits until it answers in AMQP.
    pub(crate) fn start(&self) {
        self.begin_start();
        self.wait_ready();
    }

    /// Starts the node without waiting: it answers some seconds later.
    pub(crate) fn begin_start(&self) {
        let mut node = self.node.lock().unwrap();
        assert!(node.is_none(), "the broker runs already");
        let output = fs::File::options().create(true).append(true).open(self.folder.path().join("output")).unwrap();
        let mut server = self.program("rabbitmq-server");
        server.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = server.process_group(0).spawn().expect("rabbitmq-server starts: run tests/servers.sh");
        warden::watch(child.id(), warden::Ends::OnKill);
        *node = Some(child);
    }

    /// Waits until the node answers in AMQP.
    pub(crate) fn wait_ready(&self) {
        wait_for("the broker answers", BOUND, || {
            if let Some(status) = self.node.lock().unwrap().as_mut().and_then(|node| node.try_wait().unwrap()) {
                panic!("RabbitMQ ended at its start: {status}\n{}", self.log());
            }
            self.answers()
        });
    }

    /// Stops the node in good order; its data stay.
    pub(crate) fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Ends the node with kill -9; what it had written stays.
    pub(crate) fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// Whether the node runs, ready or not.
    pub(crate) fn runs(&self) -> bool {
        self.node.lock().unwrap().is_some()
    }

    /// The node stands still with its sockets open, or goes on: a broker that hangs.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let node = self.node.lock().unwrap();
        kill_process(Pid::from_child(node.as_ref().expect("the broker runs")), signal).unwrap();
    }

    /// Runs `rabbitmqctl` against this node and returns what it printed. Takes about two seconds of CPU.
    #[track_caller]
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        must(self.program("rabbitmqctl").args(["--quiet", "--timeout", "60"]).args(args))
    }

    /// What the node printed and logged so far.
    pub(crate) fn log(&self) -> String {
        let output = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        let log = fs::read_to_string(self.home.join("log/rig@localhost.log")).unwrap_or_default();
        format!("{output}{log}")
    }

    /// A connection of the test's own with one channel on it.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// A durable queue that gets everything of a durable topic exchange; both are made if they are missing.
    pub(crate) async fn durable_queue(&self, queue: &str, exchange: &str) {
        self.queue(queue, exchange, FieldTable::default()).await;
    }

    /// As [`Broker::durable_queue`], replicated: what it confirms is on disk.
    pub(crate) async fn quorum_queue(&self, queue: &str, exchange: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        self.queue(queue, exchange, arguments).await;
    }

    async fn queue(&self, queue: &str, exchange: &str, arguments: FieldTable) {
        let (connection, channel) = self.channel().await;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let table = FieldTable::default;
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, table()).await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), "#".into(), bind, table()).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }

    /// How many messages a queue has ready.
    pub(crate) async fn ready_messages(&self, queue: &str) -> u32 {
        let (connection, channel) = self.channel().await;
        let look = QueueDeclareOptions { passive: true, ..Default::default() };
        let count = channel.queue_declare(queue.into(), look, FieldTable::default()).await.unwrap().message_count();
        connection.close(200, "done".into()).await.unwrap();
        count
    }

    /// A program of the broker's as a line of a shell.
    pub(crate) fn shim(&self, name: &str) -> String {
        as_line(&self.program(name))
    }

    /// `rabbitmqadmin` as a line of a shell; for a broker that was [begun with it](Broker::with_admin).
    pub(crate) fn admin(&self) -> String {
        format!("exec /usr/bin/rabbitmqadmin --host=127.0.0.1 --port={} \"$@\"", self.admin_port)
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.node.lock().unwrap().take() else { return };
        kill_process(Pid::from_child(&child), signal).unwrap();
        wait_for("RabbitMQ ends", BOUND, || child.try_wait().unwrap().is_some());
        warden::forget(child.id());
    }

    /// The first bytes of an AMQP handshake get an answer: a node listens a while before it is ready.
    fn answers(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
        let mut answer = [0; 1];
        let asked =
            stream.set_read_timeout(Some(Duration::from_secs(2))).and(stream.write_all(b"AMQP\x00\x00\x09\x01"));
        asked.and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer == [1]
    }

    fn program(&self, name: &str) -> Command {
        let folder = self.folder.path();
        let mut command = command_as(USER, &Path::new(PROGRAMS).join(name));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RABBITMQ_")) {
            command.env_remove(name);
        }
        command.current_dir(&self.home).env("HOME", &self.home).env("LC_ALL", "C.UTF-8");
        command.env("RABBITMQ_NODENAME", "rig@localhost").env("RABBITMQ_NODE_PORT", self.port.to_string());
        command.env("RABBITMQ_DIST_PORT", self.dist_port.to_string()).env("ERL_EPMD_PORT", self.epmd_port.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_MNESIA_BASE", self.home.join("mnesia")).env("RABBITMQ_LOG_BASE", self.home.join("log"));
        command.env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"));
        command.env("RABBITMQ_CONF_ENV_FILE", folder.join("env.conf"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"));
        // Two schedulers: the machine's cores are for the tests too. Certificates are read anew at each handshake.
        let erl = "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1} -ssl bypass_pem_cache true";
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erl);
        // Then the script becomes the node by exec, so that our child's id is the node's.
        command.env("RUNNING_UNDER_SYSTEMD", "true").env_remove("NOTIFY_SOCKET");
        command
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let epmd = self.epmd.get_mut().unwrap();
        let _ = epmd.kill();
        let _ = epmd.wait();
        warden::forget(epmd.id());
    }
}
