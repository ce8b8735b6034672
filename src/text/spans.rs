//! Spans: which pieces of a text are replaced, and the text with them replaced.
//!
//! Spans come in order of their beginnings, are made as they are asked for, and no more are asked for than fit: a text of a
//! megabyte of which ten thousand characters may leave costs memory for these only.
//!
//! Pure.

use std::iter::Peekable;

/// What stands in place of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// `'***'` for a whole literal.
    Secret,
    /// `***` for the rest of one.
    Rest,
    /// What stands for the piece right before it, or overlaps it, stands for this one too.
    More,
    /// The next `$n`.
    Number,
    /// Itself: `$n` is there already.
    Parameter,
    /// A space at the most.
    Nothing,
}

/// A piece of text, `start..end` in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) put: Put,
}

/// The spans of two readings of a text, in order, with those that overlap made one.
pub(super) struct Merged<I: Iterator<Item = Span>> {
    one: Peekable<I>,
    other: Peekable<I>,
}

impl<I: Iterator<Item = Span>> Merged<I> {
    pub(super) fn new(one: I, other: I) -> Self {
        Self { one: one.peekable(), other: other.peekable() }
    }

    fn next_if(&mut self, wanted: impl Fn(&Span) -> bool) -> Option<Span> {
        let first = match (self.one.peek(), self.other.peek()) {
            (Some(one), Some(other)) => one.start <= other.start,
            (one, _) => one.is_some(),
        };
        if first { self.one.next_if(wanted) } else { self.other.next_if(wanted) }
    }
}

impl<I: Iterator<Item = Span>> Iterator for Merged<I> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let mut span = self.next_if(|_| true)?;
        let belongs = |end: usize| move |next: &Span| next.start < end || next.start == end && next.put == Put::More;
        while let Some(next) = self.next_if(belongs(span.end)) {
            span.end = span.end.max(next.end);
            // What hides wins over what does not.
            if matches!(span.put, Put::Nothing | Put::Parameter) {
                span.put = next.put;
            }
        }
        Some(span)
    }
}

/// The text with its spans replaced, at most `max_chars` characters of it, and whether there would be more. `number` is
/// the last `$n` that is taken.
pub(super) fn rewrite(
    text: &str,
    spans: impl Iterator<Item = Span>,
    mut number: u64,
    max_chars: usize,
) -> (String, bool) {
    let mut out = Out { text: String::new(), left: max_chars, cut: false };
    let mut at = 0;
    for Span { start, end, put } in spans {
        out.push(text.get(at..start).unwrap_or_default());
        at = end;
        match put {
            Put::Secret => out.push("'***'"),
            Put::Rest | Put::More => out.push("***"),
            Put::Number => {
                number += 1;
                // `date'…'` must not become one word, nor `'…'and`.
                out.apart(continues_word);
                out.push(&format!("${number}"));
                if text.get(end..).is_some_and(|rest| rest.starts_with(continues_word)) {
                    out.push(" ");
                }
            }
            Put::Parameter => out.push(text.get(start..end).unwrap_or_default()),
            Put::Nothing => out.apart(|last| !last.is_whitespace()),
        }
        if out.cut {
            return (out.text, true);
        }
    }
    out.push(text.get(at..).unwrap_or_default());
    (out.text, out.cut)
}

struct Out {
    text: String,
    /// Characters that still fit.
    left: usize,
    cut: bool,
}

impl Out {
    fn push(&mut self, piece: &str) {
        if let Some((end, _)) = piece.char_indices().nth(self.left) {
            self.text.push_str(piece.get(..end).unwrap_or_default());
            (self.left, self.cut) = (0, true);
        } else {
            self.text.push_str(piece);
            self.left -= piece.chars().count();
        }
    }

    fn apart(&mut self, needed: impl Fn(char) -> bool) {
        if self.text.ends_with(needed) {
            self.push(" ");
        }
    }
}

fn continues_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}
