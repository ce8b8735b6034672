//! Masking: a text without what must not leave of it.
//!
//! Where a text can be read in two ways, what either way hides is hidden: `standard_conforming_strings` decides
//! whether a backslash ends a literal, and nothing in the text tells how it is set.
//!
//! Pure; time is linear in the text's length.

use std::collections::VecDeque;

use super::{
    lexer::{Backslash, Kind, Lexer},
    passwords::{self, Passwords},
    spans::{Merged, Put, Span, rewrite},
};

/// The text without passwords; all else as it was. At most `max_chars` characters, and whether there would be more.
pub(super) fn without_passwords(text: &str, max_chars: usize) -> (String, bool) {
    if passwords::can_be_in(text) {
        rewrite(text, hidden(text, false), 0, max_chars)
    } else {
        rewrite(text, std::iter::empty(), 0, max_chars)
    }
}

/// The text with `$n` for each literal, without comments. The numbers go on behind those that are there already. At most
/// `max_chars` characters, and whether there would be more.
pub(super) fn normalized(text: &str, max_chars: usize) -> (String, bool) {
    let number = |span: Span| {
        let digits = text.get(span.start + 1..span.end).filter(|_| span.put == Put::Parameter)?;
        // The protocol has at most 65535 parameters; a larger number is no parameter and does not count.
        digits.parse::<u64>().ok().filter(|number| *number <= 65_535)
    };
    // Only what is visible as a parameter counts: else a number would tell of one inside of a literal.
    let last = if text.contains('$') { hidden(text, true).filter_map(number).max() } else { None };
    rewrite(text, hidden(text, true), last.unwrap_or(0), max_chars)
}

/// What must not leave, with backslashes plain, and with backslashes that escape.
fn hidden(text: &str, literals: bool) -> impl Iterator<Item = Span> {
    let escapes = if text.contains('\\') { text } else { "" };
    Merged::new(Reading::new(text, Backslash::Plain, literals), Reading::new(escapes, Backslash::Escapes, literals))
}

/// What must not leave in one reading of a text.
struct Reading<'a> {
    lexer: Lexer<'a>,
    passwords: Passwords<'a>,
    /// No literal and no comment may leave.
    literals: bool,
    found: VecDeque<Span>,
}

impl<'a> Reading<'a> {
    fn new(text: &'a str, backslash: Backslash, literals: bool) -> Self {
        Self { lexer: Lexer::new(text, backslash), passwords: Passwords::new(text), literals, found: VecDeque::new() }
    }
}

impl Iterator for Reading<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        while self.found.is_empty() {
            let token = self.lexer.next()?;
            let passwords = self.passwords.read(token).iter().copied();
            if !self.literals {
                self.found.extend(passwords);
                continue;
            }
            let put = match token.kind {
                Kind::Text(_) | Kind::Number => Some(Put::Number),
                Kind::Comment => Some(Put::Nothing),
                Kind::Parameter => Some(Put::Parameter),
                _ => None,
            };
            self.found.extend(put.map(|put| Span { start: token.start, end: token.end, put }));
            let more = passwords.filter(|span| put.is_none() || span.end > token.end);
            let number = |span: Span| match span.put {
                Put::More => span,
                // A part of a name is no literal.
                Put::Rest if token.kind == Kind::Quoted => span,
                _ => Span { put: Put::Number, ..span },
            };
            self.found.extend(more.map(number));
        }
        self.found.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that passwords are made of, and those that hide one.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "password", "PASSWD", "passw", "ord", "pass", "p", "w", "d", "=", ":", "//", "/", "@", "u", "h", " ", "'",
            "''", "\"", "\n", "\r", "--", "/*", "*/", "\\", "\\x77", "%77", "%", "&", "U&'", "E'", "$$", "$a$", "(",
            ")", ",", ";", "ROLE", "CREATE ", "SET ", "TO", "0", "42", "é", "a", "s", "UESCAPE",
        ]);
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_text_that_is_not_read_has_nothing_to_hide(text in pieces()) {
            let hides = hidden(&text, false).next().is_some();
            prop_assert!(!hides || passwords::can_be_in(&text), "{text:?}");
        }
    }

    #[test]
    fn a_plain_statement_is_not_read() {
        for plain in [
            "SELECT 'a' FROM t -- why",
            "SELECT 1\nFROM t\n",
            "SELECT a::int / 2 FROM password",
            "UPDATE t SET w = 'pas'",
        ] {
            assert_eq!(passwords::can_be_in(plain), plain.contains("password"), "{plain:?}");
        }
    }
}
