//! The lexer: where PostgreSQL's literals, comments and words begin and end, by the rules of its own `scan.l`.
//!
//! It knows the rules of all versions at once, and where they differ it takes the longer literal: `0x1f` and `1_000`
//! are numbers since 16 and were a number and a name before; a vertical tab is blank since 17 and was an error before.
//! `123abc` is a number and a name up to 14, and an error since.
//!
//! It never fails. What is still open at the end of the text ends there: `pg_stat_activity` cuts texts anywhere.
//! Each byte is looked at a bounded number of times. Every token begins and ends at a character's boundary,
//! because every byte above 127 is part of a word or of something quoted.
//!
//! One thing the text does not tell is `standard_conforming_strings`: with it off, a backslash escapes in plain
//! quotes too. Who needs to be sure lexes twice ([`Backslash`]).
//!
//! Pure.

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whitespace.
    Space,
    /// `-- …` or `/* … */`, nested ones whole.
    Comment,
    /// A keyword or an identifier without quotes.
    Word,
    /// `"…"` or `U&"…"`.
    Quoted,
    /// A literal in quotes of any form, its prefix and its continuations on further lines included.
    Text(Delimiters),
    /// A number without its sign.
    Number,
    /// `$1`
    Parameter,
    /// One character of an operator or of punctuation; `..` is one too.
    Other,
}

/// What surrounds a literal's content, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delimiters {
    pub(super) open: usize,
    /// 0 if the literal is still open at the end of the text.
    pub(super) close: usize,
}

/// A piece of text, `start..end` in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What a backslash means between plain quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backslash {
    /// Itself: `standard_conforming_strings` on.
    Plain,
    /// It escapes: `standard_conforming_strings` off.
    Escapes,
}

/// The tokens of a text, one after the other without a hole.
pub(super) struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    backslash: Backslash,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, backslash: Backslash) -> Self {
        Self { bytes: text.as_bytes(), at: 0, backslash }
    }

    /// The byte `ahead` of here; 0, which PostgreSQL's texts never hold, behind the end.
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn ended(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn skip_while(&mut self, belongs: impl Fn(u8) -> bool) {
        while !self.ended() && belongs(self.peek(0)) {
            self.at += 1;
        }
    }

    fn token(&mut self) -> Kind {
        match (self.peek(0), self.peek(1), self.peek(2)) {
            (c, ..) if is_space(c) => {
                self.skip_while(is_space);
                Kind::Space
            }
            (b'-', b'-', _) => self.line_comment(),
            (b'/', b'*', _) => self.block_comment(),
            (b'\'', ..) => self.text(1, self.backslash),
            (b'e' | b'E', b'\'', _) => self.text(2, Backslash::Escapes),
            (b'n' | b'N', b'\'', _) => self.text(2, self.backslash),
            (b'b' | b'B' | b'x' | b'X', b'\'', _) => self.text(2, Backslash::Plain),
            (b'u' | b'U', b'&', b'\'') => self.text(3, Backslash::Plain),
            (b'u' | b'U', b'&', b'"') => self.quoted(3),
            (b'"', ..) => self.quoted(1),
            (b'$', c, _) if c.is_ascii_digit() => {
                self.at += 1;
                self.skip_while(|c| c.is_ascii_digit());
                Kind::Parameter
            }
            (b'$', ..) => self.dollar(),
            (c, ..) if starts_word(c) => {
                self.skip_while(continues_word);
                Kind::Word
            }
            // Else the second dot of `1..10` would begin a number.
            (b'.', b'.', _) => {
                self.at += 2;
                Kind::Other
            }
            (b'.', c, _) if c.is_ascii_digit() => self.number(),
            (c, ..) if c.is_ascii_digit() => self.number(),
            _ => {
                self.at += 1;
                Kind::Other
            }
        }
    }

    fn line_comment(&mut self) -> Kind {
        self.skip_while(|c| !is_newline(c));
        Kind::Comment
    }

    fn block_comment(&mut self) -> Kind {
        let mut depth = 0_usize;
        while !self.ended() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        break;
                    }
                }
                _ => self.at += 1,
            }
        }
        Kind::Comment
    }

    /// A literal in single quotes behind `open` bytes of prefix and quote.
    fn text(&mut self, open: usize, backslash: Backslash) -> Kind {
        self.at += open;
        while !self.ended() {
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) if backslash == Backslash::Escapes => self.at += 2,
                (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    let Some(next) = self.continuation() else {
                        return Kind::Text(Delimiters { open, close: 1 });
                    };
                    self.at = next;
                }
                _ => self.at += 1,
            }
        }
        // A backslash that is the last byte has stepped beyond the end.
        self.at = self.bytes.len();
        Kind::Text(Delimiters { open, close: 0 })
    }

    /// Behind the quote that goes on with a literal: one on a further line, only whitespace and `--` between.
    fn continuation(&self) -> Option<usize> {
        let mut ahead = Lexer { at: self.at, ..*self };
        let mut newline = false;
        loop {
            match (ahead.peek(0), ahead.peek(1)) {
                (b'\'', _) if newline => return Some(ahead.at + 1),
                (b'-', b'-') => {
                    ahead.line_comment();
                }
                (c, _) if is_space(c) => {
                    newline |= is_newline(c);
                    ahead.at += 1;
                }
                _ => return None,
            }
        }
    }

    fn quoted(&mut self, open: usize) -> Kind {
        self.at += open;
        while !self.ended() {
            match (self.peek(0), self.peek(1)) {
                (b'"', b'"') => self.at += 2,
                (b'"', _) => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        Kind::Quoted
    }

    /// `$$ … $$` or `$tag$ … $tag$`; a dollar that begins neither stands for itself.
    fn dollar(&mut self) -> Kind {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let tag = rest.iter().skip(1).take_while(|c| continues_tag(**c)).count();
        let open = tag + 2;
        if rest.get(tag + 1) != Some(&b'$') {
            self.at += 1;
            return Kind::Other;
        }
        let delimiter = rest.get(..open).unwrap_or_default();
        let mut at = open;
        // Linear: a comparison ends at the next dollar at the latest, and a tag holds none.
        while let Some(body) = rest.get(at..).filter(|body| !body.is_empty()) {
            if body.starts_with(delimiter) {
                self.at += at + open;
                return Kind::Text(Delimiters { open, close: open });
            }
            at += 1 + body.iter().skip(1).take_while(|c| **c != b'$').count();
        }
        self.at = self.bytes.len();
        Kind::Text(Delimiters { open, close: 0 })
    }

    fn number(&mut self) -> Kind {
        let radix = |c: u8| match c {
            b'x' | b'X' => Some(u8::is_ascii_hexdigit as fn(&u8) -> bool),
            b'o' | b'O' | b'b' | b'B' => Some(u8::is_ascii_digit as fn(&u8) -> bool),
            _ => None,
        };
        if let (b'0', Some(is_digit)) = (self.peek(0), radix(self.peek(1))) {
            let first = if self.peek(2) == b'_' { self.peek(3) } else { self.peek(2) };
            if is_digit(&first) {
                self.at += 2;
                self.skip_while(|c| is_digit(&c) || c == b'_');
                return Kind::Number;
            }
        }
        self.digits();
        // `1..10` is 1, two dots and 10.
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.digits();
        }
        let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
        if matches!(self.peek(0), b'e' | b'E') && self.peek(1 + sign).is_ascii_digit() {
            self.at += 1 + sign;
            self.digits();
        }
        Kind::Number
    }

    fn digits(&mut self) {
        self.skip_while(|c| c.is_ascii_digit() || c == b'_');
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.ended() {
            return None;
        }
        let start = self.at;
        let kind = self.token();
        Some(Token { kind, start, end: self.at })
    }
}

fn is_space(c: u8) -> bool {
    matches!(c, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_newline(c: u8) -> bool {
    matches!(c, b'\n' | b'\r')
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c >= 0x80
}

fn continues_word(c: u8) -> bool {
    starts_word(c) || c.is_ascii_digit() || c == b'$'
}

fn continues_tag(c: u8) -> bool {
    starts_word(c) || c.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens, those of whitespace left out.
    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let tokens: Vec<Token> = Lexer::new(text, Backslash::Plain).collect();
        let mut end = 0;
        for token in &tokens {
            assert_eq!(token.start, end, "a hole in {text:?}");
            end = token.end;
        }
        assert_eq!(end, text.len(), "{text:?}");
        let shown = tokens.iter().filter(|token| token.kind != Kind::Space);
        let got: Vec<&str> = shown.filter_map(|token| text.get(token.start..token.end)).collect();
        assert_eq!(got, want, "{text:?}");
    }

    #[test]
    fn literals_end_where_the_server_says_so() {
        check("'it''s' x", &["'it''s'", "x"]);
        check(r"'a\' x", &[r"'a\'", "x"]);
        check(r"E'a\'b''c' x", &[r"E'a\'b''c'", "x"]);
        check(r"U&'d\0061t' x", &[r"U&'d\0061t'", "x"]);
        check("B'01' X'ff' n'x'", &["B'01'", "X'ff'", "n'x'"]);
        check("fooE'x'", &["fooE", "'x'"]);
        check("'open", &["'open"]);
        check(r"E'open\", &[r"E'open\"]);
        check("'é' ü", &["'é'", "ü"]);
    }

    #[test]
    fn a_literal_goes_on_behind_a_newline() {
        check("'a'\n 'b' c", &["'a'\n 'b'", "c"]);
        check("'a' -- x'\n 'b'", &["'a' -- x'\n 'b'"]);
        check("'a' 'b'", &["'a'", "'b'"]);
        check("'a'\r'b'\x0c\x0b\n--c\n--d'\r\t'e' f", &["'a'\r'b'\x0c\x0b\n--c\n--d'\r\t'e'", "f"]);
        check("'a'\n-'b'", &["'a'", "-", "'b'"]);
        check("B'0'\n'1' x'f'--\n'f' U&'a'\n'b'", &["B'0'\n'1'", "x'f'--\n'f'", "U&'a'\n'b'"]);
        check("E'a'\n'b\\'c' d", &["E'a'\n'b\\'c'", "d"]);
        check("'a'\n/* */'b'", &["'a'", "/* */", "'b'"]);
    }

    #[test]
    fn dollars_quote_name_and_stand_for_themselves() {
        check("$$a'b$$ c", &["$$a'b$$", "c"]);
        check("$t$a$$b$x$t$ c", &["$t$a$$b$x$t$", "c"]);
        check("a$$b", &["a$$b"]);
        check("$1$$x$$", &["$1", "$$x$$"]);
        check("$tag x", &["$", "tag", "x"]);
        check("$t$open$t", &["$t$open$t"]);
        check("$1a", &["$1", "a"]);
        check("$é$a'$e$b$é$ c", &["$é$a'$e$b$é$", "c"]);
        check("é$$a b$x$c$x$", &["é$$a", "b$x$c$x$"]);
        check("$a-b$c$a$", &["$", "a", "-", "b$c$a$"]);
    }

    #[test]
    fn comments_nest_and_come_before_operators() {
        check("a /* b /* c */ d */ e", &["a", "/* b /* c */ d */", "e"]);
        check("1+--2\n3", &["1", "+", "--2", "3"]);
        check("/*/ a */ b", &["/*/ a */", "b"]);
        check("/* open '", &["/* open '"]);
        check("a*/**/b", &["a", "*", "/**/", "b"]);
        check("a*/* b */c", &["a", "*", "/* b */", "c"]);
        check("@-/*'*/-1", &["@", "-", "/*'*/", "-", "1"]);
        check("/***/a/**/b/*/*/*/*/", &["/***/", "a", "/**/", "b", "/*/*/*/*/"]);
        check("--a\r'b'", &["--a", "'b'"]);
    }

    #[test]
    fn numbers_are_whole() {
        check("1 1.5 .5 1e10 1.5E-3", &["1", "1.5", ".5", "1e10", "1.5E-3"]);
        check("1_000 0xFF_ff 0o17 0b101", &["1_000", "0xFF_ff", "0o17", "0b101"]);
        check("1..10 a..b 1...5", &["1", "..", "10", "a", "..", "b", "1", "..", ".5"]);
        check("123abc 1.5e-7x 1E'a'", &["123", "abc", "1.5e-7", "x", "1", "E'a'"]);
        check("0x 0b_1 5. .e1 1.e1", &["0", "x", "0b_1", "5.", ".", "e1", "1.e1"]);
        check("1$$a$$ 1x'2'", &["1", "$$a$$", "1", "x'2'"]);
        check("a1 x.1", &["a1", "x", ".1"]);
        check("1e x", &["1", "e", "x"]);
        check("0xg", &["0", "xg"]);
    }

    #[test]
    fn identifiers_in_quotes_are_whole() {
        check(r#""a""b" U&"c\0061" d"#, &[r#""a""b""#, r#"U&"c\0061""#, "d"]);
        check(r#""it's"#, &[r#""it's"#]);
    }
}
