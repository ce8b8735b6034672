//! Watches the login from below the driver: what the server asks for is looked at before the driver can answer it.
//!
//! The driver answers whatever it is asked, and a server that asks for the password itself would get it. `require_auth`
//! forbids that, so the bytes that come in are read along, message by message, until the login is done; then nothing
//! is looked at any more. Pure.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::postgres::{
    conninfo::{Method, Methods},
    error::Problem,
};

/// libpq's bounds of messages in a login, their lengths included.
const QUESTION_BYTES: std::ops::RangeInclusive<u32> = 8..=2000;
const ERROR_BYTES: std::ops::RangeInclusive<u32> = 8..=30_000;

/// How far a login is.
#[derive(Debug)]
pub(super) struct Watch {
    methods: Methods,
    /// Where the server has to ask for our certificate: whether it did.
    certificate: Option<Arc<AtomicBool>>,
    /// The begin of a message: its kind, its length and, of a question, what is asked for.
    head: Vec<u8>,
    /// Bytes of a message that are still to come and say nothing.
    skip: usize,
    asked: bool,
    done: bool,
}

impl Watch {
    pub(super) fn new(methods: Methods, certificate: Option<Arc<AtomicBool>>) -> Self {
        Self { methods, certificate, head: Vec::new(), skip: 0, asked: false, done: false }
    }

    /// Looks at what came in.
    ///
    /// # Errors
    /// If the server asks for what may not be answered, or is none.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !self.done && !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else { break };
            self.head.push(*byte);
            bytes = rest;
            self.message()?;
        }
        Ok(())
    }

    /// Looks at a message as soon as enough of it is there.
    fn message(&mut self) -> Result<(), Problem> {
        let kind = self.head.first().copied().unwrap_or_default();
        let strange = || Problem::Stranger(format!("{:?} instead of a login", char::from(kind)));
        match self.head.len() {
            // A question, the protocol's version, an error.
            1 if !matches!(kind, b'R' | b'v' | b'E') => Err(strange()),
            5 => {
                let length = self.number_at(1);
                let bounds = if kind == b'E' { ERROR_BYTES } else { QUESTION_BYTES };
                match kind {
                    _ if !bounds.contains(&length) => return Err(strange()),
                    // After an error nothing is asked any more.
                    b'E' => self.done = true,
                    b'v' => self.skip_to_end(length, 4),
                    _ => {}
                }
                Ok(())
            }
            9 => {
                let (length, code) = (self.number_at(1), self.number_at(5));
                self.skip_to_end(length, 8);
                self.question(code)
            }
            _ => Ok(()),
        }
    }

    fn number_at(&self, at: usize) -> u32 {
        let bytes = self.head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_be_bytes)
    }

    fn skip_to_end(&mut self, length: u32, seen: usize) {
        self.head.clear();
        self.skip = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(seen);
    }

    /// Whether this may be answered; the numbers are the protocol's.
    fn question(&mut self, code: u32) -> Result<(), Problem> {
        let (method, asks) = match code {
            0 => return self.over(),
            // The later steps of an exchange that was allowed to begin.
            8 | 11 | 12 => return Ok(()),
            3 => (Method::Password, "the password itself"),
            5 => (Method::Md5, "an MD5 hash of the password"),
            10 => (Method::Scram, "a SCRAM exchange"),
            2 | 7 => return Err(Problem::Method("Kerberos (GSSAPI), which this agent does not speak".into())),
            9 => return Err(Problem::Method("Windows' SSPI, which this agent does not speak".into())),
            _ => return Err(Problem::Method(format!("method {code}, which nobody knows"))),
        };
        self.asked = true;
        if self.methods.allow(method) {
            return Ok(());
        }
        Err(Problem::Method(format!("{asks}, and require_auth is {}: nothing was sent", self.methods)))
    }

    /// We are in.
    fn over(&mut self) -> Result<(), Problem> {
        self.done = true;
        if !self.asked && !self.methods.allow(Method::None) {
            return Err(Problem::Method(format!("nothing at all, and require_auth is {}", self.methods)));
        }
        if self.certificate.as_ref().is_some_and(|asked| !asked.load(Ordering::Relaxed)) {
            return Err(Problem::Method("no certificate, or there is none, and sslcertmode is require".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(code: u32, more: &[u8]) -> Vec<u8> {
        let length = u32::try_from(8 + more.len()).expect("short");
        [b"R", length.to_be_bytes().as_slice(), code.to_be_bytes().as_slice(), more].concat()
    }

    /// However the bytes are cut, the verdict is the same.
    #[track_caller]
    fn check(require_auth: &str, messages: &[Vec<u8>], want: Result<(), &str>) {
        let bytes = messages.concat();
        let methods = Methods::parse(require_auth).expect("a list");
        for size in 1..=bytes.len() {
            let mut watch = Watch::new(methods.clone(), None);
            let got = bytes.chunks(size).try_for_each(|bytes| watch.see(bytes)).map_err(|problem| problem.to_string());
            match want {
                Ok(()) => assert_eq!(got, Ok(())),
                Err(want) => assert!(got.as_ref().is_err_and(|got| got.contains(want)), "{got:?}"),
            }
        }
    }

    #[test]
    fn what_was_not_permitted_is_never_answered() {
        let (ok, password, md5) = (question(0, &[]), question(3, &[]), question(5, b"salt"));
        let scram = [question(10, b"SCRAM-SHA-256\0\0"), question(11, b"r=x"), question(12, b"v=x"), ok.clone()];
        check("!gss", &[password.clone(), ok.clone()], Ok(()));
        check("scram-sha-256", &scram, Ok(()));
        check("!scram-sha-256", &scram, Err("a SCRAM exchange"));
        check("scram-sha-256", std::slice::from_ref(&password), Err("the password itself"));
        check("!password", &[md5.clone(), ok.clone()], Ok(()));
        check("!password,!md5", &[md5], Err("an MD5 hash"));
        check("scram-sha-256", std::slice::from_ref(&ok), Err("nothing at all"));
        check("!none", std::slice::from_ref(&ok), Err("nothing at all"));
        check("!none", &[password, ok.clone()], Ok(()));
        check("!gss", &[question(7, &[])], Err("GSSAPI"));
        // What comes after the login is nobody's business.
        check("none", &[ok, b"Zanything".to_vec()], Ok(()));
    }

    #[test]
    fn who_speaks_another_language_is_told() {
        check("!gss", &[b"HTTP/1.1 400 Bad Request".to_vec()], Err("'H' instead of a login"));
        check("!gss", &[b"Rubbish and more".to_vec()], Err("'R' instead of a login"));
        check("!gss", &[b"E\0\0\0\x0cerror\0\0\0".to_vec()], Ok(()));
        check("scram-sha-256", &[b"v\0\0\0\x08\0\0\0\0".to_vec(), question(3, &[])], Err("the password itself"));
    }
}
