//! Asks over HTTP, byte by byte where a test wants that: no client library would send what must be refused.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

/// How long an answer may take.
const BOUND: Duration = Duration::from_secs(20);

/// What was answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// `GET path` of a port on 127.0.0.1; `None` where nobody listens, or nothing is answered.
pub(crate) fn try_get(port: u16, path: &str) -> Option<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let answer = say(port, request.as_bytes())?;
    (!answer.is_empty()).then(|| reply(&answer))
}

/// `GET path`, which must be answered.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> Reply {
    try_get(port, path).unwrap_or_else(|| panic!("GET {path} of port {port} is not answered"))
}

/// Sends these bytes and reads until the other end closes.
pub(crate) fn say(port: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(BOUND)).unwrap();
    // Who is refused early may find the connection closed before all is sent.
    let _closed = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    Some(answer)
}

#[track_caller]
pub(crate) fn reply(answer: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP: {text}"));
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}
