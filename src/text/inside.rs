//! Inside: passwords within a literal or a comment, behind `password=` or in a URL.
//!
//! The content is read letter by letter as it is spelled, and across the lines on which a literal goes on, so that
//! neither escapes nor a line's end hide a name.
//!
//! The surprising thing: everything behind `password=` is one, to the end of the content, and not just one value. Literals
//! hold connection strings, JSON and whole statements, each with quoting rules of its own.
//!
//! Pure; time is linear in the content's length, but for sorting what was found.

use super::spelling::{Letter, Spelling};

/// What must not leave of a content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Secrets {
    /// In bytes of the content, in order; the last one ends where the content does if it is that of a name.
    pub(super) places: Vec<(usize, usize)>,
    /// The content ends where a password begins, or says where one is to be put in: it follows in other literals.
    pub(super) open: bool,
    /// The content is a password's name, or ends with one.
    pub(super) names: bool,
}

/// `password`, `sslpassword`, `user_passwd`.
pub(super) fn names_password(word: &str) -> bool {
    let ends_with = |name: &str| {
        let tail = word.len().checked_sub(name.len()).and_then(|start| word.get(start..));
        tail.is_some_and(|tail| tail.eq_ignore_ascii_case(name))
    };
    ends_with("password") || ends_with("passwd")
}

/// Looks into a literal or a comment. `cut_short`: its end is not known.
pub(super) fn look(content: &str, cut_short: bool) -> Secrets {
    let mut secrets = Secrets::default();
    let mut letters = Spelling::new(content);
    let mut scan = Scan::default();
    let mut join: Option<(usize, Scan)> = None;
    // Up to here no quote begins a gap.
    let mut barren = 0;
    while let Some(letter) = letters.next() {
        if let Some((_, held)) = join.take_if(|(end, _)| *end <= letter.start) {
            scan.url.end(content, letter.start, false, &mut secrets);
            scan = held;
        }
        // A backslash before the quote may be plain.
        let quote = letter.end - 1;
        if letter.byte == b'\'' && join.is_none() && quote >= barren {
            match gap(content.as_bytes(), quote) {
                // What stands between the lines is looked at, and then it goes on as if it were not there.
                Ok(end) => join = Some((end, std::mem::take(&mut scan))),
                Err(end) => barren = end,
            }
        }
        scan.url.read(content, letter, &mut secrets);
        if scan.name.read(letter) {
            secrets.names = true;
            if let Some(from) = value_behind(content, letters.clone(), scan.name.quoted) {
                scan.url.end(content, from, false, &mut secrets);
                let rest = content.get(from..).unwrap_or_default();
                secrets.open |= rest.contains('%') || !rest.contains(char::is_alphanumeric);
                secrets.places.push((from, content.len()));
                secrets.places.sort_unstable();
                return secrets;
            }
        } else if !is_quote(letter.byte) && letter.byte != b'}' {
            // `data #>> '{user,password}'`
            secrets.names = false;
        }
    }
    if let Some((_, mut held)) = join {
        held.url.end(content, content.len(), cut_short, &mut secrets);
    }
    scan.url.end(content, content.len(), cut_short, &mut secrets);
    secrets.places.sort_unstable();
    secrets
}

/// What was read last.
#[derive(Debug, Default)]
struct Scan {
    name: Name,
    url: Url,
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'\'' | b'"' | b'`')
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Where the quotes at a place are followed by a newline and by quotes, only blanks and `--` between: the end of these.
/// Else how far that was looked for; no quote before there begins one either.
fn gap(content: &[u8], start: usize) -> Result<usize, usize> {
    let byte = |at: usize| content.get(at).copied().unwrap_or(0);
    let quotes = |mut at: usize| {
        while byte(at) == b'\'' {
            at += 1;
        }
        at
    };
    let mut at = quotes(start);
    let mut newline = false;
    loop {
        match byte(at) {
            b'\'' if newline => return Ok(quotes(at)),
            b'-' if byte(at + 1) == b'-' => {
                while at < content.len() && !matches!(byte(at), b'\n' | b'\r') {
                    at += 1;
                }
            }
            blank if is_blank(blank) => {
                newline |= matches!(blank, b'\n' | b'\r');
                at += 1;
            }
            _ => return Err(at),
        }
    }
}

/// How much of `password` or `passwd` was read.
#[derive(Debug, Default)]
struct Name {
    /// Letters of `passwor`, or of `passw`.
    matched: usize,
    /// A quote stands before it.
    quoted: bool,
    before: u8,
}

impl Name {
    /// Whether this letter is the last one of a name.
    fn read(&mut self, letter: Letter) -> bool {
        let byte = letter.byte.to_ascii_lowercase();
        let before = std::mem::replace(&mut self.before, byte);
        match (self.matched, byte) {
            (5 | 7, b'd') => {
                self.matched = 0;
                return true;
            }
            (matched, byte) if b"passwor".get(matched) == Some(&byte) => self.matched += 1,
            (_, b'p') => self.matched = 1,
            _ => self.matched = 0,
        }
        if self.matched == 1 {
            self.quoted = is_quote(before);
        }
        false
    }
}

/// Where behind a password's name its value begins, if one follows.
fn value_behind(content: &str, letters: Spelling<'_>, quoted: bool) -> Option<usize> {
    let mut letters = letters.peekable();
    // Behind a bracket: `user[password]=…`.
    while letters.next_if(|letter| letter.byte == b']' || quoted && is_quote(letter.byte)).is_some() {}
    let mut spaced = false;
    while letters.next_if(|letter| is_blank(letter.byte)).is_some() {
        spaced = true;
    }
    let Some(letter) = letters.next() else {
        // `'… PASSWORD ' || …`
        return (spaced && !quoted).then_some(content.len());
    };
    let next = letters.next().map_or(0, |letter| letter.byte.to_ascii_lowercase());
    let written = content.as_bytes().get(letter.start).copied();
    match letter.byte.to_ascii_lowercase() {
        b'=' | b':' | b'>' => Some(letter.end),
        // Put in by `format`, or quoted by dollars.
        b'%' | b'$' => Some(letter.start),
        _ if written == Some(b'%') => Some(letter.start),
        quote if is_quote(quote) => Some(letter.start),
        // What stands behind a comment is not looked for.
        b'/' if next == b'*' => Some(letter.start),
        b'-' if next == b'-' => Some(letter.start),
        // The prefixes of literals.
        b'e' | b'n' | b'b' | b'x' if is_quote(next) => Some(letter.start),
        b'u' if next == b'&' => Some(letter.start),
        // `SET app.password TO '…'`
        b't' if next == b'o' => {
            let value = letters.find(|letter| !is_blank(letter.byte));
            value.filter(|value| is_quote(value.byte) || value.byte == b'$').map(|value| value.start)
        }
        _ => None,
    }
}

/// A URL: `scheme://user:HERE@host`.
#[derive(Debug, Default)]
enum Url {
    #[default]
    None,
    /// `:` or `:/`
    Begins(u8),
    /// Behind `://`, before a colon.
    User,
    /// Behind the colon.
    Password {
        start: usize,
        /// The last `@`.
        host: Option<usize>,
        /// Nothing but digits so far: it may be a port.
        digits: bool,
    },
}

impl Url {
    fn read(&mut self, content: &str, letter: Letter, secrets: &mut Secrets) {
        let byte = letter.byte;
        match self {
            _ if is_blank(byte) => self.end(content, letter.start, false, secrets),
            Self::None if byte == b':' => *self = Self::Begins(b':'),
            Self::None => {}
            Self::Begins(b':') if byte == b'/' => *self = Self::Begins(b'/'),
            Self::Begins(b'/') if byte == b'/' => *self = Self::User,
            Self::Begins(_) => *self = if byte == b':' { Self::Begins(b':') } else { Self::None },
            Self::User => match byte {
                b':' => *self = Self::Password { start: letter.end, host: None, digits: true },
                b'/' | b'?' | b'#' | b'[' | b'@' => *self = Self::None,
                quote if is_quote(quote) => *self = Self::None,
                _ => {}
            },
            Self::Password { host, digits, .. } => match byte {
                b'@' => *host = Some(letter.start),
                b'/' | b'?' | b'#' if *digits && host.is_none() => *self = Self::None,
                // Of a port in JSON; in SQL it may be one that is part of the password.
                b'"' if *digits => *self = Self::None,
                quote if is_quote(quote) && host.is_some() => {
                    self.end(content, letter.start, false, secrets);
                }
                byte => *digits &= byte.is_ascii_digit(),
            },
        }
    }

    /// It ends here.
    fn end(&mut self, content: &str, end: usize, cut_short: bool, secrets: &mut Secrets) {
        if let Self::Password { start, host, digits } = *self {
            // Without a host the rest of it may be cut away, or follow in another literal.
            let unfinished = cut_short || end == content.len() && !digits;
            let place = host.or(unfinished.then_some(end)).map(|end| (start, end));
            let password = place.and_then(|(start, end)| content.get(start..end)).unwrap_or_default();
            let put_in = |sign: &str| password.contains(sign);
            // `'postgres://user:' || …`, `format('postgres://user:%s@…', …)`
            secrets.open |= host.is_none() && (unfinished || start == content.len());
            secrets.open |= put_in("%s") || put_in("%L") || put_in("%I") || put_in("$s");
            secrets.places.extend(place);
        }
        *self = Self::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of the content, with `*` for what must not leave.
    #[track_caller]
    fn check(content: &str, want: &str) {
        let secrets = look(content, false);
        let mut got = String::new();
        let mut at = 0;
        for (start, end) in secrets.places {
            assert!(at <= start, "{content:?}: places overlap");
            got += content.get(at..start).expect("a character's boundary");
            got.push('*');
            at = end;
        }
        got += content.get(at..).expect("a character's boundary");
        assert_eq!(got, want, "{content:?}");
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        check("host=h PassWd = s", "host=h PassWd =*");
        check(r"host=h pass\x77ord=s", r"host=h pass\x77ord=*");
        check(r"host=h p\0061ssword=s", r"host=h p\0061ssword=*");
        check(r"\p\a\ssword\075s", r"\p\a\ssword\075*");
        check("pas'\n  'sword=s", "pas'\n  'sword=*");
        check("pas' -- password=t\n --'\n ''sword=s", "pas' -- password=*");
        check("pas' -- it's\n 'sword=s", "pas' -- it's\n 'sword=*");
        check("pas''\n''sword=s", "pas''\n''sword=*");
        check("?passw%6frd=s", "?passw%6frd=*");
        check("ppassword:s", "ppassword:*");
        check("user[password]=s", "user[password]=*");
        check(r#"{\"password\": \"s\"}"#, r#"{\"password\":*"#);
        check("SET a.password TO 's'", "SET a.password TO *");
        check("the password to remember", "the password to remember");
        check("passwords=1, password", "passwords=1, password");
    }

    #[test]
    fn a_url_has_its_password_between_the_colon_and_the_last_at() {
        check("a://u:s@h:80/d b://v:t@h", "a://u:*@h:80/d b://v:*@h");
        check("a://u:s@t@h", "a://u:*@h");
        check("a://u:s/t@h", "a://u:*@h");
        check("a://u:it's@h", "a://u:*@h");
        check("a://u:12@h a://u:1'2@h", "a://u:*@h a://u:*@h");
        check("a://u:s", "a://u:*");
        check("a://h:80", "a://h:80");
        check(
            "a://h:80/x@y a://[::1]:80/@ a://h/b:c@d a://u@h:80/@",
            "a://h:80/x@y a://[::1]:80/@ a://h/b:c@d a://u@h:80/@",
        );
        check(r#"{"u":"a://h:80","v":"a://u:s@h","m":"m@h"}"#, r#"{"u":"a://h:80","v":"a://u:*@h","m":"m@h"}"#);
        check("a:\\x2f/u:s@h", "a:\\x2f/u:*@h");
        check("a://u:s'\n't@h", "a://u:*@h");
        check("a://u:s@h?password=t", "a://u:*@h?password=*");
    }

    #[test]
    fn what_follows_in_other_literals_is_told() {
        for content in ["a://u:", "a://u:s", "a://u:%s@h", "password=", "password = ", "ROLE a PASSWORD %L"] {
            assert!(look(content, false).open, "{content:?}");
        }
        for content in ["a://u:s@h", "password=s", "the password", "a://h"] {
            assert!(!look(content, false).open, "{content:?}");
        }
        assert!(look("smtp_password", false).names);
        assert!(look("column ''password''", false).names);
        assert!(look("{user,password}", false).names);
        assert!(!look("password is", false).names);
    }
}
