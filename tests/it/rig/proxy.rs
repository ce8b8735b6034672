//! A line between the agent and the broker that can be cut, or go deaf in one direction with its sockets open.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What the line does to connections that stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Everything gets through.
    Open,
    /// Nothing reaches the broker.
    DeafBroker,
    /// Nothing reaches the agent.
    DeafAgent,
    /// Nothing gets through, and nobody is told.
    Dead,
    /// Connections are closed; new ones too, as soon as they come.
    Cut,
    /// Of what the agent sends next, half gets through; then both ends are told that the connection is gone (TCP RST).
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct State {
    line: Line,
    /// It concerns connections up to this number.
    last: u32,
    /// Connections up to this number were cut.
    cut: u32,
}

/// A line; its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    line: watch::Sender<State>,
    accepted: Arc<AtomicU32>,
    accepts: JoinHandle<()>,
}

impl Proxy {
    /// A line to `port` on this host, open.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", super::free_port())).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (line, lines) = watch::channel(State { line: Line::Open, last: 0, cut: 0 });
        let accepted = Arc::new(AtomicU32::new(0));
        let number = Arc::clone(&accepted);
        let accepts = tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                if lines.borrow().line == Line::Cut {
                    continue;
                }
                let number = number.fetch_add(1, Ordering::SeqCst) + 1;
                let Ok(broker) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(carry(agent, broker, number, lines.clone()));
            }
        });
        Self { port: own, line, accepted, accepts }
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the line for the connections that stand; those that come later are served well, unless it is cut.
    pub(crate) fn set(&self, line: Line) {
        let last = self.accepted();
        self.line.send_modify(|state| {
            let cut = if line == Line::Cut { last } else { state.cut };
            *state = State { line, last, cut };
        });
    }

    /// Connections that were let through so far.
    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
        self.set(Line::Cut);
    }
}

async fn carry(agent: TcpStream, broker: TcpStream, number: u32, lines: watch::Receiver<State>) {
    let ((from_agent, to_agent), (from_broker, to_broker)) = (agent.into_split(), broker.into_split());
    let cut = {
        let mut lines = lines.clone();
        async move {
            // A line that nobody holds any more is cut.
            let _gone = lines.wait_for(|state| number <= state.cut).await;
        }
    };
    let up = pump(from_agent, to_broker, number, lines.clone(), [Line::DeafBroker, Line::Dead]);
    let down = pump(from_broker, to_agent, number, lines.clone(), [Line::DeafAgent, Line::Dead]);
    tokio::select! {
        () = cut => {}
        // One end is closed: so is the other.
        () = up => {}
        () = down => {}
    }
}

fn is_reset(state: &State, number: u32) -> bool {
    state.line == Line::Reset && number <= state.last
}

/// Carries bytes as long as the line is not deaf this way for this connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u32,
    mut lines: watch::Receiver<State>,
    deaf: [Line; 2],
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let hears = |state: &State| !deaf.contains(&state.line) || number > state.last;
        if lines.wait_for(hears).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            changed = lines.changed() => if changed.is_err() { return },
            read = from.read(&mut bytes) => match read {
                Ok(count @ 1..) if deaf[0] == Line::DeafBroker && is_reset(&lines.borrow(), number) => {
                    let _gone = to.write_all(&bytes[..count / 2]).await;
                    let _gone = (to.as_ref().set_zero_linger(), from.as_ref().set_zero_linger());
                    return;
                }
                Ok(count @ 1..) => if to.write_all(&bytes[..count]).await.is_err() { return },
                _ => return,
            },
        }
    }
}
