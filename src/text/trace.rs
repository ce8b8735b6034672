//! Traces: the ids of a W3C traceparent, from an application name or from a comment in a statement.
//!
//! `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01` is version, trace id, span id and flags
//! (<https://www.w3.org/TR/trace-context/#traceparent-header>). A traceparent counts only when it is whole: PostgreSQL cuts
//! application names at 63 bytes and statements at `track_activity_query_size`. Comments carry it as sqlcommenter writes it
//! (`/*traceparent='…'*/`, values URL-encoded), or as `traceparent=…` or `traceparent:…` as others do.
//!
//! The surprising thing: comments that contradict each other tell nothing. Several statements can be sent in one text, and
//! which of them is at work is not known.
//!
//! Pure; time is linear in a text's length.

use super::lexer::{Backslash, Kind, Lexer};

/// The ids of one traceparent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// 32 hexadecimal digits in lower case, not all zero.
    pub trace_id: String,
    /// 16 hexadecimal digits in lower case, not all zero: the span in which the statement was sent.
    pub span_id: String,
}

/// What names it in a comment.
const KEY: &str = "traceparent";

impl Trace {
    /// The trace of a session: from its application name, else from a comment of its statement as it was sent.
    pub fn find(application_name: Option<&str>, statement: Option<&str>) -> Option<Self> {
        application_name.and_then(Self::in_name).or_else(|| statement.and_then(Self::in_comments))
    }

    /// The traceparent in an application name, bare or among other words.
    fn in_name(name: &str) -> Option<Self> {
        let begins = |at: &usize| !name.get(..*at).is_some_and(|before| before.ends_with(char::is_alphanumeric));
        let starts = name.match_indices('-').filter_map(|(dash, _)| dash.checked_sub(2)).filter(begins);
        starts.filter_map(|start| name.get(start..)).find_map(|rest| Self::read(rest.bytes()))
    }

    fn in_comments(statement: &str) -> Option<Self> {
        // Most statements have none, and are not worth reading token by token.
        if !statement.contains(KEY) {
            return None;
        }
        let found = Self::in_comments_read_as(statement, Backslash::Plain)?;
        // What is a comment in one reading only may be a part of a literal.
        let sure = !statement.contains('\\')
            || Self::in_comments_read_as(statement, Backslash::Escapes).as_ref() == Some(&found);
        sure.then_some(found)
    }

    fn in_comments_read_as(statement: &str, backslash: Backslash) -> Option<Self> {
        let comments = Lexer::new(statement, backslash).filter(|token| token.kind == Kind::Comment);
        let texts = comments.filter_map(|token| statement.get(token.start..token.end));
        let mut found = texts.flat_map(|comment| {
            let values = comment.match_indices(KEY).filter_map(|(at, _)| Self::value(comment, at));
            values.filter_map(|value| Self::read(decoded(value)))
        });
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }

    /// What stands behind the key at a place: `='…`, `=…`, `:…`.
    fn value(comment: &str, at: usize) -> Option<&str> {
        let continues = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        if comment.get(..at)?.ends_with(continues) {
            return None;
        }
        let rest = comment.get(at + KEY.len()..)?.trim_start().strip_prefix(['=', ':'])?.trim_start();
        Some(rest.strip_prefix(['\'', '"']).unwrap_or(rest))
    }

    /// A traceparent at the begin of some text.
    fn read(mut bytes: impl Iterator<Item = u8>) -> Option<Self> {
        let version = hex(&mut bytes, 2)?;
        dash(&mut bytes)?;
        let trace_id = hex(&mut bytes, 32)?;
        dash(&mut bytes)?;
        let span_id = hex(&mut bytes, 16)?;
        dash(&mut bytes)?;
        hex(&mut bytes, 2)?;
        // A later version may have more behind a dash, which nobody knows yet.
        let ends = match bytes.next() {
            Some(b'-') => version != "00",
            next => !next.is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | 0x80..)),
        };
        let zero = |id: &str| id.bytes().all(|digit| digit == b'0');
        (ends && version != "ff" && !zero(&trace_id) && !zero(&span_id)).then_some(Self { trace_id, span_id })
    }
}

/// So many hexadecimal digits in lower case.
fn hex(bytes: &mut impl Iterator<Item = u8>, digits: usize) -> Option<String> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f').then(|| char::from(byte));
    (0..digits).map(|_| bytes.next().and_then(digit)).collect()
}

fn dash(bytes: &mut impl Iterator<Item = u8>) -> Option<()> {
    (bytes.next()? == b'-').then_some(())
}

/// The bytes of a URL-encoded value.
fn decoded(value: &str) -> impl Iterator<Item = u8> {
    let mut rest = value.as_bytes();
    std::iter::from_fn(move || {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        if let [b'%', high, low, behind @ ..] = rest
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            rest = behind;
            return Some(high << 4 | low);
        }
        let (first, behind) = rest.split_first()?;
        rest = behind;
        Some(*first)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    #[track_caller]
    fn check(application_name: &str, statement: &str, want: bool) {
        let found = Trace::find(Some(application_name), Some(statement));
        let ids = found.as_ref().map(|trace| (trace.trace_id.as_str(), trace.span_id.as_str()));
        assert_eq!(ids, want.then_some((TRACE, SPAN)), "{application_name:?}, {statement:?}");
    }

    #[track_caller]
    fn in_name(name: &str, want: bool) {
        check(name, "", want);
    }

    #[track_caller]
    fn in_statement(statement: &str, want: bool) {
        check("psql", statement, want);
    }

    #[test]
    fn a_name_holds_a_traceparent_bare_or_among_other_words() {
        in_name(PARENT, true);
        in_name(&format!("web {PARENT}"), true);
        in_name(&format!("web-{PARENT} 7"), true);
        in_name(&format!("é-{PARENT}"), true);
        in_name("", false);
        in_name("00-00-00-", false);
    }

    #[test]
    fn a_traceparent_counts_only_when_it_is_whole_and_valid() {
        for end in 0..PARENT.len() {
            in_name(PARENT.get(..end).expect("ASCII"), false);
        }
        in_name(&format!("{PARENT}0"), false);
        in_name(&format!("0{PARENT}"), false);
        in_name(&format!("{PARENT}é"), false);
        in_name(&PARENT.to_uppercase(), false);
        in_name(&PARENT.replace('-', "_"), false);
        in_name(&PARENT.replace(TRACE, &"0".repeat(32)), false);
        in_name(&PARENT.replace(SPAN, &"0".repeat(16)), false);
        in_name(&PARENT.replace("4bf9", "4bg9"), false);
    }

    #[test]
    fn later_versions_may_have_more_behind_a_dash_and_ff_is_none() {
        let version = |version: &str| PARENT.replacen("00", version, 1);
        in_name(&version("01"), true);
        in_name(&format!("{}-more", version("cc")), true);
        in_name(&format!("{}more", version("cc")), false);
        in_name(&format!("{PARENT}-more"), false);
        in_name(&version("ff"), false);
    }

    #[test]
    fn comments_carry_it_in_each_form_at_any_place() {
        in_statement(&format!("SELECT 1 /*traceparent='{PARENT}'*/"), true);
        in_statement(&format!("/*db='x',traceparent='{PARENT}',tracestate='a%3Db'*/ SELECT 1"), true);
        in_statement(&format!("SELECT 1 /* app:web,traceparent:{PARENT} */;"), true);
        in_statement(&format!("/* traceparent={PARENT},action=x */ SELECT 1"), true);
        in_statement(&format!("/* traceparent = \"{PARENT}\" */ SELECT 1"), true);
        in_statement(&format!("SELECT 1 -- traceparent={PARENT}\n"), true);
        in_statement(&format!("/*traceparent='{}'*/", PARENT.replace('-', "%2D")), true);
        in_statement(&format!("/*traceparent='{}'*/", PARENT.replace('-', "%2d").replace('4', "%34")), true);
        in_statement(&format!("/* a /* traceparent='{PARENT}' */ b */ SELECT 1"), true);
        in_statement(&format!("/*traceparent='{PARENT}'*/ SELECT 1; /*traceparent='{PARENT}'*/ SELECT 2"), true);
        in_statement(&format!("/*traceparent='x'*/ SELECT 1 /*traceparent='{PARENT}'*/"), true);
    }

    #[test]
    fn what_is_no_comment_or_another_key_gives_none() {
        in_statement(&format!("SET application_name = '{PARENT}'"), false);
        in_statement(&format!("SET application_name = 'traceparent={PARENT}'"), false);
        in_statement(&format!("SELECT '/*traceparent=''{PARENT}''*/'"), false);
        in_statement(&format!("SELECT $$/*traceparent='{PARENT}'*/$$"), false);
        in_statement(&format!("SELECT \"/*traceparent='{PARENT}'*/\""), false);
        in_statement(&format!("SELECT traceparent /* {PARENT} */"), false);
        in_statement(&format!("/*xtraceparent='{PARENT}', my-traceparent='{PARENT}'*/"), false);
        in_statement(&format!("/*traceparents='{PARENT}'*/"), false);
        in_statement(&format!("/*tracestate='{PARENT}'*/"), false);
    }

    #[test]
    fn what_is_a_comment_in_one_reading_only_gives_none() {
        in_statement(&format!(r"SELECT '\' /*traceparent={PARENT}*/ '"), false);
        in_statement(&format!(r"SELECT 'a\', ' /*traceparent={PARENT}*/"), false);
        in_statement(&format!(r"SELECT E'\'' /*traceparent={PARENT}*/"), true);
    }

    #[test]
    fn a_comment_that_was_cut_gives_only_a_whole_one() {
        let statement = format!("SELECT 1 /*traceparent='{PARENT}'*/");
        let whole = statement.len() - "'*/".len();
        for end in 0..=statement.len() {
            in_statement(statement.get(..end).expect("ASCII"), end >= whole);
        }
    }

    #[test]
    fn comments_that_contradict_each_other_give_none() {
        in_statement(&format!("/*traceparent='{PARENT}'*/ SELECT 1; /*traceparent='{OTHER}'*/ SELECT 2"), false);
        in_statement(&format!("/*traceparent='{PARENT}',traceparent='{OTHER}'*/"), false);
    }

    #[test]
    fn the_application_name_wins() {
        check(PARENT, &format!("/*traceparent='{OTHER}'*/"), true);
        check(PARENT.trim_end_matches('1'), &format!("/*traceparent='{PARENT}'*/"), true);
    }

    proptest! {
        #[test]
        fn any_valid_traceparent_is_found_in_any_place(
            version in "[0-9a-e][0-9a-f]", trace in "[0-9a-f]{31}[1-9a-f]", span in "[0-9a-f]{15}[1-9a-f]",
            flags in "[0-9a-f]{2}", before in "[^a-zA-Z0-9é]{0,3}", comment in "[a-z ,=:]{0,5}[ ,]", encoded: bool,
        ) {
            let parent = format!("{version}-{trace}-{span}-{flags}");
            let want = Some(Trace { trace_id: trace, span_id: span });
            let begins = before.chars().all(|c| !c.is_alphanumeric());
            prop_assume!(begins);
            prop_assert_eq!(Trace::find(Some(&format!("{before}{parent} ")), None), want.clone());
            let value = if encoded { parent.replace('-', "%2D") } else { parent };
            let statement = format!("SELECT 1 /*{comment}traceparent='{value}'*/");
            prop_assert_eq!(Trace::find(None, Some(&statement)), want);
        }

        #[test]
        fn no_text_makes_it_panic_or_gives_what_is_no_id(text in "[0-9a-f\\-%' /*=]{0,80}", free: String) {
            for text in [text, free] {
                let comment = format!("/*traceparent='{text}");
                for trace in [Trace::find(Some(&text), Some(&comment)), Trace::find(None, Some(&comment))] {
                    let hex = |id: &str| id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                    prop_assert!(trace.is_none_or(|trace| hex(&trace.trace_id) && trace.span_id.len() == 16));
                }
            }
        }
    }
}
