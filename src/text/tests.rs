//! What leaves of a text and what never does, in tables and with secrets planted anywhere.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const RAW: Policy = Policy { query_text: QueryText::Raw };
const NORMALIZED: Policy = Policy { query_text: QueryText::Normalized };

#[track_caller]
fn check(policy: &Policy, text: &str, want: &str) {
    assert_eq!(policy.clean(text, 10_000).as_deref(), Some(want), "{text:?}");
}

#[track_caller]
fn unchanged(text: &str) {
    check(&RAW, text, text);
}

#[test]
fn a_literal_after_password_never_leaves() {
    for literal in ["'s'", "E's\\'x'", "U&'s'", "$$s$$", "$t$s$t$", "'s''t'", "'s'\n't'", "N's'", "'s", "$t$s", "12"] {
        check(&RAW, &format!("ALTER ROLE a PASSWORD {literal}"), "ALTER ROLE a PASSWORD '***'");
        check(&RAW, &format!("create user a password/* x */\n{literal}"), "create user a password/* x */\n'***'");
        check(&NORMALIZED, &format!("ALTER ROLE a PASSWORD {literal}"), "ALTER ROLE a PASSWORD $1");
    }
    check(&RAW, "ALTER ROLE a PASSWORD 's' VALID UNTIL 'x'", "ALTER ROLE a PASSWORD '***' VALID UNTIL 'x'");
    check(&RAW, "alter user a encrypted password's'", "alter user a encrypted password'***'");
    check(&RAW, "CREATE ROLE a PASSWORD 's'; SELECT 'x'", "CREATE ROLE a PASSWORD '***'; SELECT 'x'");
    unchanged("ALTER ROLE a PASSWORD NULL");
    unchanged("ALTER ROLE a PASSWORD $1");
}

#[test]
fn a_password_that_was_quoted_wrongly_never_leaves() {
    check(&RAW, "ALTER USER a PASSWORD \"s\"", "ALTER USER a PASSWORD '***'");
    check(&RAW, "ALTER USER a PASSWORD s3c!x VALID", "ALTER USER a PASSWORD '***' VALID");
    check(&RAW, "ALTER USER a PASSWORD 'it's' VALID", "ALTER USER a PASSWORD '***'");
    check(&RAW, "ALTER USER a PASSWORD 'a\\'b' VALID", "ALTER USER a PASSWORD '***'");
}

#[test]
fn passwords_in_options_columns_and_calls_never_leave() {
    check(&RAW, "OPTIONS (user 'u', password 's')", "OPTIONS (user 'u', password '***')");
    check(&RAW, "OPTIONS (SET \"Password\" 's')", "OPTIONS (SET \"Password\" '***')");
    check(&RAW, "OPTIONS (sslpassword 's', a 'b')", "OPTIONS (sslpassword '***', a 'b')");
    check(&RAW, "OPTIONS (U&\"p!0061\" UESCAPE '!' 's', a 'b')", "OPTIONS (U&\"p!0061\" UESCAPE '***' '***', a 'b')");
    check(&RAW, "UPDATE u SET password = 's', x = 'y'", "UPDATE u SET password = '***', x = 'y'");
    check(&RAW, "f(user_password => 's', x => 'y')", "f(user_password => '***', x => 'y')");
    check(&RAW, "password = crypt('s', salt('bf'))", "password = crypt('***', salt('bf'))");
    unchanged("SELECT password FROM u WHERE name = 'x'");
    unchanged("SELECT * FROM u WHERE password = $1 AND name = 'x'");
    unchanged("SELECT a.password = b.c AND name = 'x'");
    unchanged("SET password_encryption = 'scram-sha-256'");
}

#[test]
fn passwords_inside_literals_and_comments_never_leave() {
    check(&RAW, "dblink('host=h password=s dbname=d')", "dblink('host=h password=***')");
    check(&RAW, "CONNECTION 'passwd = ''s'''", "CONNECTION 'passwd =***'");
    check(&RAW, "CONNECTION $x$password=s$x$ y", "CONNECTION $x$password=***$x$ y");
    check(&RAW, "dblink('host=h PassWord=s", "dblink('host=h PassWord=***");
    check(&RAW, r#"'{"password": "s"}'"#, r#"'{"password":***'"#);
    check(&RAW, r#"'{"user_password":"s"}'"#, r#"'{"user_password***'"#);
    check(&RAW, "DO $$ BEGIN EXECUTE 'ALTER ROLE a PASSWORD ''s'''; END $$", {
        "DO $$ BEGIN EXECUTE 'ALTER ROLE a PASSWORD ***$$"
    });
    check(&RAW, "EXECUTE 'ALTER ROLE a PASSWORD''s'''", "EXECUTE 'ALTER ROLE a PASSWORD***'");
    check(&RAW, "SELECT 1 -- ALTER ROLE a PASSWORD 's'\n, 2", "SELECT 1 -- ALTER ROLE a PASSWORD ***\n, 2");
    unchanged("SELECT 'the password is wrong'");
    unchanged("SELECT 'column ''password'' is odd', 'x'");
    unchanged("WHERE column_name = 'password' AND x = 'y'");
}

#[test]
fn a_password_put_together_from_several_literals_never_leaves() {
    check(
        &RAW,
        "'ALTER ROLE a PASSWORD ' || quote_literal('s')",
        "'ALTER ROLE a PASSWORD ***' || quote_literal('***')",
    );
    check(&RAW, "dblink('password=' || 's' || 't')", "dblink('password=***' || '***' || '***')");
    check(&RAW, "format('ROLE a PASSWORD %L', 's'); f('x')", "format('ROLE a PASSWORD ***', '***'); f('x')");
}

#[test]
fn passwords_in_urls_never_leave() {
    check(&RAW, "CONNECTION 'postgresql://u:s@h/d'", "CONNECTION 'postgresql://u:***@h/d'");
    check(&RAW, "CONNECTION 'postgresql://u:s@h/d?password=t'", "CONNECTION 'postgresql://u:***@h/d?password=***'");
    check(&RAW, "CONNECTION 'postgresql://u:sec", "CONNECTION 'postgresql://u:***");
    unchanged("SELECT 'http://h:80/x', 'a@b'");
}

#[test]
fn raw_leaves_all_else_as_it_is() {
    unchanged("SELECT 'a', 1, E'b\\'c', $$d$$ /* e */ FROM \"f\" -- g");
    unchanged("SELECT 'cut sho");
    unchanged("");
}

#[test]
fn normalized_has_a_number_for_each_literal() {
    check(&NORMALIZED, "SELECT 'a', 1.5, E'b\\'c', $$d$$, B'1', 0xff", "SELECT $1, $2, $3, $4, $5, $6");
    check(&NORMALIZED, "WHERE a = $2 AND b = 'x' AND c = -3", "WHERE a = $2 AND b = $3 AND c = -$4");
    check(&NORMALIZED, "select'x'and date'2020-01-01'", "select $1 and date $2");
    check(&NORMALIZED, "SELECT t1.c2, \"it's 5\"", "SELECT t1.c2, \"it's 5\"");
    check(&NORMALIZED, "a IN (1,2,3)", "a IN ($1,$2,$3)");
    check(&NORMALIZED, "ALTER USER a PASSWORD s3c", "ALTER USER a PASSWORD $1");
}

#[test]
fn normalized_drops_comments() {
    check(&NORMALIZED, "SELECT a/* b */FROM c -- d\nWHERE e", "SELECT a FROM c \nWHERE e");
    check(&NORMALIZED, "SELECT a /* b /* c */", "SELECT a ");
    check(&NORMALIZED, "-- a\nSELECT b", "\nSELECT b");
}

#[test]
fn normalized_masks_what_was_cut_short() {
    check(&NORMALIZED, "WHERE email = 'bob@exam", "WHERE email = $1");
    check(&NORMALIZED, "WHERE a = $$se", "WHERE a = $1");
    check(&NORMALIZED, "WHERE a = E'se\\", "WHERE a = $1");
    check(&NORMALIZED, "WHERE id = 42 AND (na", "WHERE id = $1 AND (na");
}

#[test]
fn a_backslash_before_a_quote_hides_what_either_reading_hides() {
    check(&NORMALIZED, r"SELECT 'it\'s secret', x", "SELECT $1");
    check(&NORMALIZED, r"LIKE '\\' AND x = 'y' AND z", "LIKE $1 AND x = $2 AND z");
}

#[test]
fn off_lets_nothing_leave() {
    assert_eq!(Policy { query_text: QueryText::Off }.clean("SELECT 1", 10), None);
}

#[test]
fn long_texts_are_cut_by_characters() {
    assert_eq!(RAW.clean("äöü", 3).as_deref(), Some("äöü"));
    assert_eq!(RAW.clean("äöüß", 3).as_deref(), Some("äöü...[truncated]"));
    assert_eq!(RAW.clean("PASSWORD 'secret'", 13).as_deref(), Some("PASSWORD '***...[truncated]"));
}

#[test]
fn time_is_linear_in_the_length() {
    let pieces = [
        "'",
        "''",
        "$a$",
        "$a",
        "/*",
        "*/",
        "password",
        "password ",
        "password/*",
        "://u:",
        "\\'",
        "'\n",
        "'a' --\n",
        "U&\"",
        "1e",
        "password='",
        "PASSWORD ",
        "E'\\",
        "--",
        "$1",
        "ALTER ROLE PASSWORD x ",
        "\"",
        "aaaa",
        "'a';",
    ];
    for piece in pieces {
        let text = piece.repeat(400_000 / piece.len());
        let start = Instant::now();
        let _clean = (RAW.clean(&text, 100), NORMALIZED.clean(&text, 100));
        // Linear takes a fraction of a second without optimization; quadratic would take minutes.
        assert!(start.elapsed() < Duration::from_secs(10), "{piece:?} took {:?}", start.elapsed());
    }
}

/// A character that stands in secrets only.
const SECRET: char = 'Ω';

/// A secret with all that could end a literal too early.
fn secret() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec!["Ω", "'", "\\", "\"", "--", "/*", "*/", "\n", "$", "$$", " ", "é", ";", "="]);
    prop::collection::vec(piece, 0..8).prop_map(|pieces| format!("Ω{}Ω", pieces.concat()))
}

/// The secret as a literal of any form, as a client would write it. `conforming`: `standard_conforming_strings`.
fn literal(secret: &str, form: usize, conforming: bool) -> String {
    let quotes = secret.replace('\'', "''");
    let slashes = secret.replace('\\', "\\\\");
    match form % 6 {
        0 if conforming => format!("'{quotes}'"),
        0 => format!("'{}'", slashes.replace('\'', "\\'")),
        1 => format!("E'{}'", slashes.replace('\'', "\\'")),
        2 => format!("e'{}'", slashes.replace('\'', "''")),
        3 => format!("$q${secret}$q$"),
        4 if conforming => format!("'Ω'\n  '{quotes}'"),
        4 => format!("'Ω'\n  '{}'", slashes.replace('\'', "''")),
        _ => format!("U&'{}'", quotes.replace('\\', "\\\\")),
    }
}

/// The text cut anywhere.
fn beginnings(text: &str) -> impl Iterator<Item = &str> {
    (0..=text.len()).filter_map(|end| text.get(..end))
}

/// No secret shows in any beginning of the text.
fn never_shows(policy: &Policy, text: &str) -> Result<(), TestCaseError> {
    for beginning in beginnings(text) {
        let clean = policy.clean(beginning, 10_000).unwrap_or_default();
        prop_assert!(!clean.contains(SECRET), "{beginning:?} became {clean:?}");
    }
    Ok(())
}

fn before() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "SELECT 'a', ",
        "/* it's */ ",
        "-- 'x\n",
        "SELECT \"it's\", ",
        "SELECT $$'$$, ",
        "a$$b ",
        "$1 ",
        "E'\\'' ",
        "U&'\\0041' ",
        "1e",
        "b'01' ",
        "x$1$ ",
        "'a' -- b\n 'c' ",
        "/* /* */ ' */ ",
        "'%' ",
        "password ",
        "0x1F ",
    ])
}

proptest! {
    #[test]
    fn normalized_never_shows_a_planted_literal(
        secret in secret(), form in 0usize..6, conforming: bool, before in before(), after in before(),
    ) {
        never_shows(&NORMALIZED, &format!("{before}x = {} {after}", literal(&secret, form, conforming)))?;
    }

    #[test]
    fn normalized_never_shows_a_planted_comment(secret in secret(), block: bool, before in before()) {
        let text = if block {
            format!("{before}/*{}*/ x", secret.replace("*/", "").replace("/*", ""))
        } else {
            format!("{before}--{}\n x", secret.replace('\n', ""))
        };
        never_shows(&NORMALIZED, &text)?;
    }

    #[test]
    fn raw_never_shows_a_planted_password(
        secret in secret(), form in 0usize..6, conforming: bool, before in before(), gap in 0usize..4, verb in 0usize..4,
    ) {
        let gap = [" ", "\n\t", " /* a */ ", " -- a\n"][gap];
        let verb = ["ALTER ROLE a PASSWORD", "OPTIONS (password", "OPTIONS (\"password\"", "SET passwd ="][verb];
        never_shows(&RAW, &format!("{before}{verb}{gap}{} x", literal(&secret, form, conforming)))?;
    }

    #[test]
    fn raw_never_shows_a_password_planted_inside_a_literal(
        secret in secret(), form in 0usize..6, conforming: bool, before in before(), quoted: bool, equals in 0usize..3,
    ) {
        let value = if quoted { format!("'{}'", secret.replace('\\', "\\\\").replace('\'', "\\'")) } else { secret };
        let equals = ["=", " = ", ": "][equals];
        // The form that begins with a secret of its own has no name before it.
        let form = if form == 4 { 0 } else { form };
        let conninfo = format!("host=h password{equals}{value} dbname=d");
        never_shows(&RAW, &format!("{before}x({}) y", literal(&conninfo, form, conforming)))?;
    }

    #[test]
    fn any_text_is_cleaned_without_a_panic(text: String, odd in "[\\\\'\"$a-e&/*: =\\-\nEUuPASWORD1]{0,60}") {
        for text in [text, odd] {
            for beginning in beginnings(&text) {
                let _clean = (RAW.clean(beginning, 5), NORMALIZED.clean(beginning, 5));
            }
        }
    }

    #[test]
    fn what_was_normalized_stays_as_it_is(odd in "[\\\\'\"$a-e&/*: =\\-\nEUu1]{0,60}") {
        let once = NORMALIZED.clean(&odd, 10_000).unwrap_or_default();
        let twice = NORMALIZED.clean(&once, 10_000);
        prop_assert_eq!(twice.as_deref(), Some(once.as_str()));
    }
}
