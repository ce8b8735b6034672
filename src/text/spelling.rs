//! Spelling: which characters a literal's content stands for, whichever way they are written.
//!
//! `w` can be written `\w`, `\x77`, `\167`, `\u0077`, `\U00000077` (in `E''`), `\0077`, `\+000077` (in `U&''`) and `%77`
//! (in a URL), and each backslash may be doubled where the literal stands inside of another one. All are read everywhere:
//! what a piece of text is in the end evaluated by, nobody knows here. So one text has one spelling, which is good for
//! looking for something in it and for nothing else.
//!
//! The surprising thing: this hides nothing that is written plainly. An escape takes hexadecimal and octal digits only
//! away from what follows it, and neither the `p` of a password nor the `=` and `:` behind it are among these.
//!
//! Pure; each byte is looked at a bounded number of times.

/// One character and where it is written, `start..end` in bytes of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Letter {
    /// In ASCII; of all other characters any byte above 127.
    pub(super) byte: u8,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The letters of a content, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Spelling<'a> {
    content: &'a [u8],
    at: usize,
}

impl<'a> Spelling<'a> {
    pub(super) fn new(content: &'a str) -> Self {
        Self { content: content.as_bytes(), at: 0 }
    }

    fn byte(&self, at: usize) -> u8 {
        self.content.get(at).copied().unwrap_or(0)
    }

    /// The value of `least` to `most` digits at a place, and where they end.
    fn digits(&self, at: usize, radix: u32, least: usize, most: usize) -> Option<(u32, usize)> {
        let mut value = 0;
        let mut end = at;
        while let Some(digit) = char::from(self.byte(end)).to_digit(radix).filter(|_| end < at + most) {
            value = value * radix + digit;
            end += 1;
        }
        (end >= at + least).then_some((value, end))
    }

    /// What stands behind a backslash.
    fn escaped(&self, at: usize) -> (u8, usize) {
        let ascii = |(value, end): (u32, usize)| (u8::try_from(value).unwrap_or(u8::MAX), end);
        let printable = |(value, _): &(u32, usize)| matches!(value, 0x09..=0x0d | 0x20..=0x7e);
        let digits = match self.byte(at) {
            b'x' => self.digits(at + 1, 16, 1, 2),
            b'u' => self.digits(at + 1, 16, 4, 4),
            b'U' => self.digits(at + 1, 16, 8, 8),
            b'+' => self.digits(at + 1, 16, 6, 6),
            // In octal these would be other control characters.
            _ => self.digits(at, 16, 4, 4).filter(printable).or_else(|| self.digits(at, 8, 1, 3)),
        };
        digits.map_or_else(
            || match self.byte(at) {
                b'n' | b't' | b'r' | b'f' | b'b' | b'v' => (b' ', at + 1),
                byte => (byte, at + 1),
            },
            ascii,
        )
    }
}

impl Iterator for Spelling<'_> {
    type Item = Letter;

    fn next(&mut self) -> Option<Letter> {
        let start = self.at;
        let mut at = start;
        while self.byte(at) == b'\\' {
            at += 1;
        }
        if at >= self.content.len() {
            self.at = at;
            return None;
        }
        let (byte, end) = match self.byte(at) {
            _ if at > start => self.escaped(at),
            b'%' => self
                .digits(at + 1, 16, 2, 2)
                .and_then(|(value, end)| Some((u8::try_from(value).ok()?, end)))
                .unwrap_or((b'%', at + 1)),
            byte => (byte, at + 1),
        };
        self.at = end;
        Some(Letter { byte, start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &str, want: &str) {
        let letters: Vec<Letter> = Spelling::new(content).collect();
        let got: Vec<u8> = letters.iter().map(|letter| letter.byte).collect();
        assert_eq!(String::from_utf8_lossy(&got), want, "{content:?}");
        let mut end = 0;
        for letter in letters {
            assert_eq!(letter.start, end, "a hole in {content:?}");
            end = letter.end;
        }
    }

    #[test]
    fn a_letter_is_read_in_each_way_that_it_can_be_written() {
        check(r"a\w\x77\167\u0077\U00000077\0077\+000077%77", "awwwwwwww");
        check(r"\x7g\x3d\075\u003d", "\x07g===");
        check(r"\\x77\\\\0077", "ww");
        check(r"a\nb\tc", "a b c");
        check(r#"{\"a\": 1}"#, r#"{"a": 1}"#);
    }

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        check(r"\u00 \x \9 %4 %zz 5%", "u00 x 9 %4 %zz 5%");
        check(r"a\", "a");
    }
}
