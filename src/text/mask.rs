//! Masking: which pieces of a text must not leave the host, and the text without them.
//!
//! Where a text can be read in two ways, what either way hides is hidden: `standard_conforming_strings` decides
//! whether a backslash ends a literal, and nothing in the text tells how it is set.
//!
//! The surprising thing: inside a literal or a comment, everything behind `password=` is masked to its end, and not
//! just one value. Literals hold connection strings, JSON and whole statements, each with quoting rules of its own.
//!
//! Pure; time is linear in the text's length, but for sorting what was found.

use super::lexer::{Backslash, Delimiters, Kind, Lexer, Token};

/// What stands in place of a hidden piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// `'***'` for a whole literal.
    Secret,
    /// `***` for the rest of one.
    Rest,
    /// The next `$n`.
    Number,
    /// A space at the most.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
    put: Put,
}

/// The text without passwords; all else as it was.
pub(super) fn without_passwords(text: &str) -> String {
    rewrite(text, merge(in_every_reading(text, passwords)), 0)
}

/// The text with `$n` for each literal, without comments. The numbers go on behind those that are there already.
pub(super) fn normalized(text: &str) -> String {
    let hidden = |text: &str, backslash| {
        let number = |span: Span| Span { put: Put::Number, ..span };
        let mut spans: Vec<Span> = passwords(text, backslash).into_iter().map(number).collect();
        spans.extend(Lexer::new(text, backslash).filter_map(|Token { kind, start, end }| match kind {
            Kind::Text(_) | Kind::Number => Some(Span { start, end, put: Put::Number }),
            Kind::Comment => Some(Span { start, end, put: Put::Nothing }),
            _ => None,
        }));
        spans
    };
    let parameters = Lexer::new(text, Backslash::Plain).filter(|token| token.kind == Kind::Parameter);
    let number = |token: Token| text.get(token.start + 1..token.end).and_then(|digits| digits.parse::<u64>().ok());
    // The protocol has at most 65535 parameters; a larger number is no parameter and does not count.
    let last = parameters.filter_map(number).filter(|number| *number <= 65_535).max().unwrap_or(0);
    rewrite(text, merge(in_every_reading(text, hidden)), last)
}

/// What is found in the text with backslashes plain, and with backslashes that escape.
fn in_every_reading(text: &str, find: impl Fn(&str, Backslash) -> Vec<Span>) -> Vec<Span> {
    let mut spans = find(text, Backslash::Plain);
    if text.contains('\\') {
        spans.extend(find(text, Backslash::Escapes));
    }
    spans
}

/// In order, with those that overlap made one.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start < last.end => {
                last.end = last.end.max(span.end);
                if last.put == Put::Nothing {
                    last.put = span.put;
                }
            }
            _ => merged.push(span),
        }
    }
    merged
}

fn rewrite(text: &str, spans: Vec<Span>, mut number: u64) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for Span { start, end, put } in spans {
        out.push_str(text.get(at..start).unwrap_or_default());
        at = end;
        match put {
            Put::Secret => out.push_str("'***'"),
            Put::Rest => out.push_str("***"),
            Put::Number => {
                number += 1;
                // `date'…'` must not become one word, nor `'…'and`.
                apart(&mut out, continues_word);
                out.push('$');
                out.push_str(&number.to_string());
                if text.get(end..).is_some_and(|rest| rest.starts_with(continues_word)) {
                    out.push(' ');
                }
            }
            Put::Nothing => apart(&mut out, |last| !last.is_whitespace()),
        }
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

fn apart(out: &mut String, needed: impl Fn(char) -> bool) {
    if out.ends_with(needed) {
        out.push(' ');
    }
}

fn continues_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

/// Whether the next value is a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Nothing,
    /// Right behind `PASSWORD`.
    Value,
    /// Behind `password =`.
    Operand,
    /// Behind `password = word`, which may be a function's name.
    Call,
}

/// Reads a statement and takes note of the passwords in it.
struct Passwords<'a> {
    text: &'a str,
    spans: Vec<Span>,
    expect: Expect,
    /// The word before.
    word: &'a str,
    /// Within CREATE or ALTER of a role, user or group: there whatever follows PASSWORD is one, quoted or not.
    role: bool,
    /// Within a value that has no blanks: it goes on, because a quote inside of it was not doubled.
    value: bool,
    /// An open `password=` ended a literal: what is put behind it follows in others.
    open: bool,
}

fn passwords(text: &str, backslash: Backslash) -> Vec<Span> {
    let mut passwords = Passwords {
        text,
        spans: Vec::new(),
        expect: Expect::Nothing,
        word: "",
        role: false,
        value: false,
        open: false,
    };
    for token in Lexer::new(text, backslash) {
        passwords.read(token);
    }
    passwords.spans
}

impl<'a> Passwords<'a> {
    fn read(&mut self, token: Token) {
        let piece = self.text.get(token.start..token.end).unwrap_or_default();
        if self.value && !matches!(token.kind, Kind::Space | Kind::Comment) && piece != ";" {
            if let Some(last) = self.spans.last_mut() {
                last.end = token.end;
            }
            return;
        }
        self.value = false;
        if self.expect == Expect::Call && piece != "(" && !matches!(token.kind, Kind::Space | Kind::Comment) {
            self.expect = Expect::Nothing;
        }
        match token.kind {
            Kind::Space | Kind::Parameter => {}
            Kind::Comment => self.inside(token, 0, 0),
            Kind::Word => self.word(token, piece),
            Kind::Quoted => self.quoted(token, piece),
            Kind::Text(delimiters) => self.literal(token, delimiters),
            Kind::Number if self.expect == Expect::Nothing => {}
            Kind::Number => self.hide(token),
            Kind::Other => self.other(piece),
        }
        if token.kind == Kind::Parameter {
            self.expect = Expect::Nothing;
        }
    }

    fn hide(&mut self, token: Token) {
        self.spans.push(Span { start: token.start, end: token.end, put: Put::Secret });
        self.value = self.role;
        self.expect = Expect::Nothing;
    }

    fn word(&mut self, token: Token, word: &'a str) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        let after = |other: &str| self.word.eq_ignore_ascii_case(other);
        match self.expect {
            // The escape character of U&"…" comes before what it names has its value.
            Expect::Value if is("UESCAPE") => {}
            Expect::Value if self.role && !is("NULL") => self.hide(token),
            Expect::Operand => self.expect = Expect::Call,
            _ if names_password(word) => self.expect = Expect::Value,
            _ => self.expect = Expect::Nothing,
        }
        self.role |= (is("ROLE") || is("USER") || is("GROUP")) && (after("CREATE") || after("ALTER"));
        self.word = word;
    }

    fn quoted(&mut self, token: Token, piece: &str) {
        let escaped = piece.starts_with(['u', 'U']) && piece.contains('\\');
        match self.expect {
            // A common mistake, and the server keeps the text although it refuses it.
            Expect::Value => self.hide(token),
            _ if escaped || names_password(piece.trim_end_matches('"')) => self.expect = Expect::Value,
            _ if piece.starts_with(['u', 'U']) => self.expect = Expect::Value,
            _ => self.expect = Expect::Nothing,
        }
        self.word = "";
    }

    fn literal(&mut self, token: Token, delimiters: Delimiters) {
        if self.open || self.expect != Expect::Nothing {
            let uescape = self.word.eq_ignore_ascii_case("UESCAPE") && self.expect == Expect::Value;
            self.hide(token);
            if uescape {
                self.word = "";
                self.value = false;
                self.expect = Expect::Value;
            }
        } else {
            self.inside(token, delimiters.open, delimiters.close);
        }
    }

    fn other(&mut self, piece: &str) {
        match (piece, self.expect) {
            (";", _) => {
                self.expect = Expect::Nothing;
                self.role = false;
                self.open = false;
                self.word = "";
            }
            ("=" | ":" | "<" | ">" | "!" | "~" | "|" | "(", Expect::Value | Expect::Operand | Expect::Call) => {
                self.expect = Expect::Operand;
            }
            _ => self.expect = Expect::Nothing,
        }
    }

    /// Looks into a literal or a comment.
    fn inside(&mut self, token: Token, open: usize, close: usize) {
        let (start, end) = (token.start + open, token.end - close);
        let content = self.text.get(start..end).unwrap_or_default();
        let from = password_inside(content.as_bytes());
        let before = content.get(..from.unwrap_or(content.len())).unwrap_or_default();
        let cut_short = from.is_none() && token.end == self.text.len();
        self.spans.extend(passwords_in_urls(before, cut_short).into_iter().map(|(from, to)| Span {
            start: start + from,
            end: start + to,
            put: Put::Rest,
        }));
        if let Some(from) = from {
            let rest = content.get(from..).unwrap_or_default();
            self.open |= rest.contains('%') || !rest.contains(char::is_alphanumeric);
            self.spans.push(Span { start: start + from, end, put: Put::Rest });
        }
    }
}

/// `password`, `sslpassword`, `user_passwd`.
fn names_password(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    word.ends_with("password") || word.ends_with("passwd")
}

/// Where in a literal or a comment the value of a password begins.
fn password_inside(content: &[u8]) -> Option<usize> {
    let is_quote = |c: u8| matches!(c, b'\'' | b'"' | b'\\' | b'`');
    let byte = |at: usize| content.get(at).copied().unwrap_or(0);
    let begins_with =
        |at: usize, name: &[u8]| content.get(at..at + name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
    let mut at = 0;
    while at < content.len() {
        let Some(name) = [&b"password"[..], b"passwd"].into_iter().find(|name| begins_with(at, name)) else {
            at += 1;
            continue;
        };
        let opened = at > 0 && is_quote(byte(at - 1));
        at += name.len();
        while opened && is_quote(byte(at)) {
            at += 1;
        }
        let end = at;
        while byte(at).is_ascii_whitespace() {
            at += 1;
        }
        match byte(at) {
            b'=' | b':' | b'>' => return Some(at + 1),
            b'%' | b'$' => return Some(at),
            c if is_quote(c) => return Some(at),
            // What stands behind a comment is not looked for.
            b'/' if byte(at + 1) == b'*' => return Some(at),
            b'-' if byte(at + 1) == b'-' => return Some(at),
            b'e' | b'E' | b'n' | b'N' if is_quote(byte(at + 1)) => return Some(at),
            b'u' | b'U' if byte(at + 1) == b'&' => return Some(at),
            // `'… PASSWORD ' || …`
            _ if at == content.len() && at > end && !opened => return Some(at),
            _ => {}
        }
    }
    None
}

/// Where in a literal or a comment URLs hold passwords: `scheme://user:HERE@host`.
fn passwords_in_urls(content: &str, cut_short: bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(scheme) = content.get(at..).and_then(|rest| rest.find("://")) {
        let start = at + scheme + 3;
        let rest = content.get(start..).unwrap_or_default();
        let len = rest.find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"')).unwrap_or(rest.len());
        let url = rest.get(..len).unwrap_or_default();
        at = start + len;
        let Some(colon) = url.find(':') else { continue };
        match url.rfind('@') {
            Some(host) if host > colon => found.push((start + colon + 1, start + host)),
            None if cut_short && at == content.len() => found.push((start + colon + 1, at)),
            _ => {}
        }
    }
    found
}
