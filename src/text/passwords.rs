//! Passwords: which literals of a statement are one, read token by token.
//!
//! From a name that ends in `password` to the end of its phrase each literal is hidden: `PASSWORD 's'`, `password = 's'`,
//! `password IN ('s', 't')`, `password => crypt('s', …)`. Where it is not clear whether something is one, it is taken for
//! one.
//!
//! Pure; time is linear in the text's length.

use super::{
    inside::{self, names_password},
    lexer::{Kind, Token},
    spans::{Put, Span},
};

/// Reads a statement and takes note of the passwords in it.
pub(super) struct Passwords<'a> {
    text: &'a str,
    /// What was found in the token that was read last.
    spans: Vec<Span>,
    /// Brackets that are open; CASE and END are some too.
    depth: usize,
    phrase: Option<Phrase>,
    /// The word before.
    word: &'a str,
    /// Within CREATE or ALTER of a role, user or group: there whatever follows PASSWORD is one, quoted or not.
    role: bool,
    /// Right behind a value: it goes on if no blank follows, because a quote inside of it was not doubled.
    value: Option<Value>,
    /// A password is put together from this literal and others.
    open: bool,
}

/// Behind a password's name.
#[derive(Debug, Clone, Copy)]
struct Phrase {
    /// Brackets that were open at its begin.
    depth: usize,
    /// Right behind the name.
    fresh: bool,
    /// One comma belongs to it: `set_config('app.password', 's', …)`.
    comma: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// A literal. If it goes on, nobody knows to where.
    Literal,
    /// The literal of a role's password.
    Role,
    /// Words without quotes: up to the next blank.
    Bare,
}

/// These end a phrase.
const ENDS: [&str; 23] = [
    "AND",
    "AS",
    "ELSE",
    "EXCEPT",
    "FROM",
    "GROUP",
    "HAVING",
    "INTERSECT",
    "JOIN",
    "LIMIT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "RETURNING",
    "SET",
    "THEN",
    "UNION",
    "VALID",
    "VALUES",
    "WHEN",
    "WHERE",
];

/// Whether one can be in a text at all: a name of one, a URL, or what either can be spelled with so that it is not seen.
/// Few texts have any of it, and all others need not be read.
pub(super) fn can_be_in(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut quote, mut newline) = (false, false);
    bytes.iter().enumerate().any(|(at, byte)| {
        let ends = |beginning: &[u8]| {
            let read = at.checked_sub(beginning.len()).and_then(|start| bytes.get(start..at));
            read.is_some_and(|read| read.eq_ignore_ascii_case(beginning))
        };
        quote |= *byte == b'\'';
        newline |= matches!(byte, b'\n' | b'\r');
        match byte {
            // Escapes, and U&'…'.
            b'\\' | b'%' | b'&' => true,
            b'/' => ends(b":"),
            b'w' | b'W' => ends(b"pass"),
            // A literal that goes on behind a newline, and with it a name.
            _ => quote && newline,
        }
    })
}

impl<'a> Passwords<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, spans: Vec::new(), depth: 0, phrase: None, word: "", role: false, value: None, open: false }
    }

    /// What must not leave of the next token, in order; the last one may go on to the end of the text.
    pub(super) fn read(&mut self, token: Token) -> &[Span] {
        self.spans.clear();
        let piece = self.text.get(token.start..token.end).unwrap_or_default();
        if !self.goes_on(token, piece) {
            match token.kind {
                Kind::Comment => self.comment(token, piece),
                Kind::Word => self.word(token, piece),
                Kind::Quoted => self.quoted(token, piece),
                Kind::Text(delimiters) => {
                    let close = token.end - delimiters.close;
                    self.literal(token, piece, token.start + delimiters.open, close);
                }
                Kind::Number if self.phrase.is_some() => self.hide(token, Value::Bare),
                Kind::Space | Kind::Number => {}
                Kind::Parameter => self.stale(),
                Kind::Other => self.other(token, piece),
            }
        }
        &self.spans
    }

    fn span(&mut self, start: usize, end: usize, put: Put) {
        self.spans.push(Span { start, end, put });
    }

    fn hide(&mut self, token: Token, value: Value) {
        self.span(token.start, token.end, Put::Secret);
        self.value = match value {
            Value::Literal if self.role => Some(Value::Role),
            Value::Bare if !self.role => None,
            value => Some(value),
        };
        // The escape character of U&"…" comes before what it names has its value.
        if self.phrase.is_some_and(|phrase| phrase.fresh) && !self.word.eq_ignore_ascii_case("UESCAPE") {
            self.phrase = None;
        }
    }

    /// Whether the token is still part of the value before it.
    fn goes_on(&mut self, token: Token, piece: &str) -> bool {
        let Some(value) = self.value else { return false };
        let ends = match token.kind {
            Kind::Space | Kind::Comment => true,
            Kind::Other => value == Value::Literal || matches!(piece, ";" | "," | ")"),
            _ => false,
        };
        if ends {
            self.value = None;
            return false;
        }
        let end = if value == Value::Bare { token.end } else { self.text.len() };
        self.span(token.start, end, Put::More);
        true
    }

    /// Something stands between the name and what comes.
    fn stale(&mut self) {
        if let Some(phrase) = &mut self.phrase {
            phrase.fresh = false;
        }
    }

    fn begin(&mut self, fresh: bool) {
        self.phrase = Some(Phrase { depth: self.depth, fresh, comma: !fresh });
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.phrase = self.phrase.filter(|phrase| phrase.depth <= self.depth);
    }

    fn word(&mut self, token: Token, word: &'a str) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        let after = |other: &str| self.word.eq_ignore_ascii_case(other);
        let names = names_password(word);
        if let Some(phrase) = self.phrase.filter(|_| !is("UESCAPE")) {
            // A role may be named like that too.
            if phrase.fresh && self.role && !names && !is("NULL") {
                self.word = word;
                self.hide(token, Value::Bare);
                return;
            }
            let goes_on = [("DISTINCT", "FROM"), ("NOT", "NULL"), ("BETWEEN", "AND")];
            let ends = self.depth == phrase.depth && ENDS.into_iter().any(is);
            if ends && !goes_on.into_iter().any(|(before, word)| after(before) && is(word)) {
                self.phrase = None;
            }
            self.stale();
        }
        if names {
            self.begin(true);
        } else if is("CASE") {
            self.depth += 1;
        } else if is("END") {
            self.close();
        }
        self.role |= (is("ROLE") || is("USER") || is("GROUP")) && (after("CREATE") || after("ALTER"));
        // CREATE USER MAPPING has options instead.
        self.role &= !is("MAPPING");
        self.word = word;
    }

    fn quoted(&mut self, token: Token, piece: &str) {
        self.word = "";
        let escapes = piece.starts_with(['u', 'U']);
        if self.phrase.is_some_and(|phrase| phrase.fresh) {
            // A common mistake, and the server keeps the text although it refuses it.
            self.hide(token, Value::Literal);
        } else if escapes || names_password(piece.trim_end_matches('"')) {
            self.begin(true);
        } else {
            self.stale();
            let close = usize::from(piece.len() > 1 && piece.ends_with('"'));
            self.look_inside(token.start + 1, token.end - close, token.end == self.text.len());
        }
    }

    fn literal(&mut self, token: Token, piece: &str, start: usize, end: usize) {
        if self.open || self.phrase.is_some() {
            self.hide(token, Value::Literal);
        } else if piece.starts_with(['u', 'U']) && has_own_escapes(piece.as_bytes()) {
            self.span(token.start, token.end, Put::Secret);
        } else {
            let cut_short = may_go_on(self.text.get(token.end..).unwrap_or_default());
            let secrets = self.look_inside(start, end, cut_short);
            self.open = secrets.open;
            if secrets.names {
                self.begin(false);
            }
        }
    }

    fn comment(&mut self, token: Token, piece: &str) {
        let close = if piece.starts_with("/*") && piece.ends_with("*/") && piece.len() > 3 { 2 } else { 0 };
        self.look_inside(token.start, token.end - close, token.end == self.text.len());
    }

    fn look_inside(&mut self, start: usize, end: usize, cut_short: bool) -> inside::Secrets {
        let content = self.text.get(start..end).unwrap_or_default();
        let secrets = inside::look(content, cut_short);
        for (from, to) in &secrets.places {
            self.span(start + from, start + to, Put::Rest);
        }
        secrets
    }

    fn other(&mut self, token: Token, piece: &str) {
        match piece {
            "(" | "[" => self.depth += 1,
            ")" | "]" => self.close(),
            ";" => {
                *self = Self { spans: std::mem::take(&mut self.spans), ..Self::new(self.text) };
            }
            "," => {
                let depth = self.depth;
                self.phrase = self.phrase.filter(|phrase| phrase.comma || phrase.depth < depth);
                if let Some(phrase) = self.phrase.as_mut().filter(|phrase| phrase.depth == depth) {
                    phrase.comma = false;
                }
            }
            "=" | ":" if self.role => return,
            "=" | ":" => {}
            _ if self.role && self.phrase.is_some_and(|phrase| phrase.fresh) => {
                self.hide(token, Value::Bare);
                return;
            }
            _ => {}
        }
        self.stale();
    }
}

/// Whether what follows a literal can be cut away parts of it: nothing else comes.
fn may_go_on(mut rest: &str) -> bool {
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        if !rest.starts_with("--") {
            // One dash may be half of a comment's begin.
            return matches!(rest, "" | "-");
        }
        rest = rest.find(['\n', '\r']).and_then(|end| rest.get(end..)).unwrap_or_default();
    }
}

/// Whether something in `U&'…'` can be an escape by another character than the backslash, such as `!0061`. Which one it
/// is stands behind the literal, and a text may end before that.
fn has_own_escapes(piece: &[u8]) -> bool {
    let escapes = |behind: &[u8]| {
        let digits = behind.strip_prefix(b"+00").unwrap_or(behind);
        matches!(digits, [b'0', b'0', b'0'..=b'7', last, ..] if last.is_ascii_hexdigit())
    };
    let begins = |byte: u8| !(byte.is_ascii_hexdigit() || matches!(byte, b'\\' | b'+' | b'\'' | b'"' | b' '));
    let pairs = piece.iter().enumerate();
    pairs.into_iter().any(|(at, byte)| begins(*byte) && escapes(piece.get(at + 1..).unwrap_or_default()))
}
