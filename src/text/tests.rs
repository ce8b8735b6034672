//! What leaves of a text and what never does, in tables and with secrets planted anywhere.

use std::{borrow::Cow, fs};

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

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
    check(&RAW, "ALTER USER a PASSWORD 'it's secret' VALID", "ALTER USER a PASSWORD '***'");
    check(&NORMALIZED, "ALTER USER a PASSWORD 'it's secret' VALID", "ALTER USER a PASSWORD $1");
    check(&RAW, "OPTIONS (password 'it's secret')", "OPTIONS (password '***'");
    check(&RAW, "ALTER USER a PASSWORD $ecret VALID", "ALTER USER a PASSWORD '***' VALID");
    check(&RAW, "dblink(\"host=h password=s\")", "dblink(\"host=h password=***\")");
    // A part of a name is no literal, and is not numbered like one.
    check(&NORMALIZED, "dblink(\"host=h password=s\", 1)", "dblink(\"host=h password=***\", $1)");
    check(&NORMALIZED, "\"://:***\"$1", "\"://:***\"$1");
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
    check(&RAW, "password = crypt('s', salt('bf')), x = 'y'", "password = crypt('***', salt('***')), x = 'y'");
    check(&RAW, "password = text 's' || 't' AND x = 'y'", "password = text '***' || '***' AND x = 'y'");
    check(&RAW, "password NOT IN ('s', 't') OR x = 'y'", "password NOT IN ('***', '***') OR x = 'y'");
    check(&RAW, "password BETWEEN 's' AND 't' AND x = 'y'", "password BETWEEN '***' AND '***' AND x = 'y'");
    check(&RAW, "CREATE ROLE password PASSWORD 's'", "CREATE ROLE password PASSWORD '***'");
    check(&RAW, "ALTER USER a PASSWORD = s3c VALID", "ALTER USER a PASSWORD = '***' VALID");
    check(&RAW, "password IS DISTINCT FROM 's'", "password IS DISTINCT FROM '***'");
    check(&RAW, "password = CASE WHEN a THEN 's' ELSE 't' END, x = 'y'", {
        "password = CASE WHEN a THEN '***' ELSE '***' END, x = 'y'"
    });
    check(&RAW, "CASE WHEN password = 's' THEN 'y' END", "CASE WHEN password = '***' THEN 'y' END");
    check(&RAW, "SET app.password TO 's'; SELECT 'x'", "SET app.password TO '***'; SELECT 'x'");
    check(&RAW, "set_config('app.password', 's', false), 'x'", "set_config('app.password', '***', false), 'x'");
    check(&RAW, "data->>'password' = 's' AND x = 'y'", "data->>'password' = '***' AND x = 'y'");
    check(&RAW, "CREATE USER MAPPING FOR u SERVER v OPTIONS (password 's', a 'b')", {
        "CREATE USER MAPPING FOR u SERVER v OPTIONS (password '***', a 'b')"
    });
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
    check(&RAW, "/* ALTER ROLE a PASSWORD 's' */ SELECT 'x'", "/* ALTER ROLE a PASSWORD ****/ SELECT 'x'");
    check(&RAW, "SELECT 1 -- ALTER ROLE a PASSWORD 's'\n, 2", "SELECT 1 -- ALTER ROLE a PASSWORD ***\n, 2");
    unchanged("SELECT 'the password is wrong'");
    unchanged("SELECT 'column ''password'' is odd', 'x'");
    unchanged("WHERE column_name = 'password' AND x = 'y'");
}

#[test]
fn a_name_that_is_hidden_by_escapes_or_a_lines_end_is_found() {
    check(&RAW, r"dblink(E'pass\x77ord=s')", r"dblink(E'pass\x77ord=***')");
    check(&RAW, r"dblink(E'\p\141ssw\u006frd\075s", r"dblink(E'\p\141ssw\u006frd\075***");
    check(&RAW, r"dblink(U&'p\0061ssword=s')", r"dblink(U&'p\0061ssword=***')");
    check(&RAW, r"dblink(U&'p!0061ssword=s' UESCAPE '!')", r"dblink('***' UESCAPE '!')");
    check(&RAW, r"dblink(U&'p!+000061ssword=s", r"dblink('***'");
    check(&RAW, "dblink('pass'\n  'word=s')", "dblink('pass'\n  'word=***')");
    check(&RAW, "dblink('pass' -- it's\n\n'word'\r'=s')", "dblink('pass' -- it's\n\n'word***')");
    check(&RAW, r"DO $$ SELECT E'pass\x77ord=s' $$", r"DO $$ SELECT E'pass\x77ord=***$$");
    check(&RAW, "dblink('postgres://u:'\n's@h')", "dblink('postgres://u:***@h')");
    unchanged(r"SELECT U&'d\0061t\+000061', U&'0061', E'a\x77\n'");
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
    check(&RAW, "'postgresql://u:' || 's' || '@h'", "'postgresql://u:' || '***' || '***'");
    check(&RAW, "format('postgresql://u:%s@h', 's'); f('x')", "format('postgresql://u:***@h', '***'); f('x')");
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
    // A parameter in one reading, a part of a literal in the other: its number must not show.
    check(&NORMALIZED, r"SELECT '\' $4711 '", "SELECT $1");
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

/// Nanoseconds of the processor that this thread had, whoever else wants it.
fn spent() -> f64 {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells the times of a thread");
    schedstat.split(' ').next().and_then(|time| time.parse().ok()).expect("a number")
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
        "--\n",
        "/**/",
        "'a'/**/",
        "'a'--\n",
        "'a' password='",
        "password\n",
        "'a://b:",
        "pass'\n'",
        "'--'\n",
        "\\",
        "traceparent",
        "$1",
        "ALTER ROLE PASSWORD x ",
        "\"",
        "aaaa",
        "'a';",
    ];
    for piece in pieces {
        let text = piece.repeat(400_000 / piece.len());
        let start = spent();
        let _clean = (RAW.clean(&text, 1_000_000), NORMALIZED.clean(&text, 1_000_000), Trace::find(None, Some(&text)));
        // Linear takes a second without optimization; quadratic would take minutes. benches/texts.rs has the figures.
        let seconds = (spent() - start) / 1e9;
        assert!(seconds < 20.0, "{piece:?} took {seconds} s");
    }
}

/// What stands in secrets only, by the forms of literals below; the last ones in numbers.
const SECRETS: [&str; 4] = ["Ω", "999", "9_9", "777"];

/// A secret with all that could end a literal too early.
fn secret() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec!["Ω", "'", "\\", "\"", "--", "/*", "*/", "\n", "$", "$$", " ", "é", ";", "="]);
    prop::collection::vec(piece, 0..8).prop_map(|pieces| format!("Ω{}Ω", pieces.concat()))
}

/// How a value is written as a literal.
#[derive(Debug, Clone)]
struct Writing {
    /// `'…'`, `N'…'`, `E'…'`, `U&'…'`, `U&'…' UESCAPE '!'`, `$q$…$q$`
    form: usize,
    /// `standard_conforming_strings`
    conforming: bool,
    /// For each character in turn whether and how it is escaped, and whether the literal goes on in a further line.
    dice: Vec<u8>,
}

fn writing() -> impl Strategy<Value = Writing> {
    // Mostly plain characters, so that names stand there whole as well.
    let die = prop_oneof![3 => Just(0_u8), 2 => any::<u8>()];
    (0usize..6, any::<bool>(), prop::collection::vec(die, 1..40)).prop_map(|(form, conforming, dice)| Writing {
        form,
        conforming,
        dice,
    })
}

impl Writing {
    /// The literal, as a client would write it.
    fn literal(&self, value: &str) -> String {
        if self.form == 5 {
            return format!("$q${value}$q$");
        }
        let backslashes = self.form == 2 || self.form < 2 && !self.conforming;
        let dice = self.dice.iter().cycle();
        let content = value.chars().zip(dice).map(|(c, die)| {
            let code = u32::from(c);
            let written = match (self.form, c, die % 8) {
                (_, '\'', 0 | 1) if backslashes => "\\'".to_owned(),
                (_, '\'', _) => "''".to_owned(),
                (_, '\\', _) if backslashes || self.form == 3 => "\\\\".to_owned(),
                (3, _, 1) => format!("\\{code:04x}"),
                (3, _, 2) => format!("\\+{code:06X}"),
                (4, _, 1) => format!("!{code:04X}"),
                (4, _, 2) => format!("!+{code:06x}"),
                (_, _, 3) if backslashes && c.is_ascii() => format!("\\x{code:02X}"),
                (_, _, 4) if backslashes && c.is_ascii() => format!("\\{code:03o}"),
                (_, _, 5) if backslashes => format!("\\u{code:04x}"),
                (_, _, 6) if backslashes => format!("\\U{code:08X}"),
                (_, 'p' | 'a' | 's' | 'w' | 'o' | 'd', 7) if backslashes => format!("\\{c}"),
                _ => c.to_string(),
            };
            let gap = match die / 8 {
                1 => "'\n'",
                2 => "' -- it''s\r\n\t--\n  '",
                _ => "",
            };
            written + gap
        });
        let content: String = content.collect();
        let (open, close) = match self.form {
            0 => ("'", "'"),
            1 => ("N'", "'"),
            2 => ("e'", "'"),
            3 => ("U&'", "'"),
            _ => ("u&'", "' UESCAPE '!'"),
        };
        format!("{open}{content}{close}")
    }
}

fn number() -> impl Strategy<Value = String> {
    let forms = ["99999", "9.99999", "999e99", ".999", "999.", "0x999", "0o777", "9_9_9", "999.999E-99", "-999"];
    prop::sample::select(forms.to_vec()).prop_map(str::to_owned)
}

/// A text with a literal or a comment planted.
fn planted_literal() -> impl Strategy<Value = String> {
    let literal = (secret(), writing()).prop_map(|(secret, writing)| writing.literal(&secret));
    let hex = prop::sample::select(vec!["x'999'", "B'999'"]).prop_map(str::to_owned);
    let block = secret().prop_map(|secret| format!("/*{}*/", secret.replace("*/", "").replace("/*", "")));
    let line = secret().prop_map(|secret| format!("--{}\n", secret.replace('\n', "")));
    let planted = prop_oneof![6 => literal, 2 => number(), 1 => hex, 1 => block, 1 => line];
    (before(), planted, before()).prop_map(|(before, planted, after)| format!("{before}x = {planted} {after}"))
}

/// A text with a password planted.
fn planted_password() -> impl Strategy<Value = String> {
    let behind = |(secret, writing, verb, gap): (String, Writing, &str, &str)| {
        format!("{verb}{gap}{} x", writing.literal(&secret))
    };
    let verbs = prop::sample::select(vec![
        "ALTER ROLE a PASSWORD",
        "OPTIONS (password",
        "OPTIONS (\"password\"",
        "SET passwd =",
        "SET app.password TO",
        "f(a, user_password =>",
    ]);
    let gaps = prop::sample::select(vec![" ", "\n\t", " /* a */ ", " -- a\n"]);
    let behind = (secret(), writing(), verbs, gaps).prop_map(behind);
    let inside = |(secret, writing, name, quoted): (String, Writing, &str, bool)| {
        let value = if quoted { format!("'{}'", secret.replace('\\', "\\\\").replace('\'', "\\'")) } else { secret };
        format!("x({}) y", writing.literal(&format!("host=h {name}{value} dbname=d")))
    };
    let names = prop::sample::select(vec![
        "password=",
        "PassWord = ",
        "sslpassword: ",
        "passwd=",
        "a PASSWORD '",
        "passWord\t=",
    ]);
    let inside = (secret(), writing(), names, any::<bool>()).prop_map(inside);
    let url = (secret(), writing()).prop_map(|(secret, writing)| {
        let value = secret.replace([' ', '\n'], "");
        format!("x({}) y", writing.literal(&format!("postgresql://u:{value}@h:5432/d")))
    });
    (before(), prop_oneof![2 => behind, 4 => inside, 1 => url]).prop_map(|(before, text)| before.to_owned() + &text)
}

/// The text cut anywhere, also within a character, as the server's bytes would be read.
fn beginnings(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    (0..=text.len()).map(|end| String::from_utf8_lossy(&text.as_bytes()[..end]))
}

/// What shows of the secrets in any beginning of the text.
fn found(policy: &Policy, text: &str) -> Option<String> {
    beginnings(text).find_map(|beginning| {
        let clean = policy.clean(&beginning, 10_000).unwrap_or_default();
        SECRETS.iter().any(|secret| clean.contains(secret)).then(|| format!("{beginning:?} became {clean:?}"))
    })
}

fn never_shows(policy: &Policy, text: &str) -> Result<(), TestCaseError> {
    let found = found(policy, text);
    prop_assert!(found.is_none(), "{}", found.unwrap_or_default());
    Ok(())
}

/// Plants ten thousand, and counts in how many texts, whole or cut anywhere, something of it is found.
fn count(what: &str, policy: &Policy, texts: impl Strategy<Value = String>) {
    const PLANTED: usize = 10_000;
    let mut runner = TestRunner::deterministic();
    let (mut cleaned, mut left) = (0, Vec::new());
    for _ in 0..PLANTED {
        let text = texts.new_tree(&mut runner).expect("a text").current();
        cleaned += text.len() + 1;
        left.extend(found(policy, &text));
    }
    println!("{what}: planted {PLANTED}, found {} in {cleaned} whole and cut texts", left.len());
    assert_eq!(left, [""; 0]);
}

#[test]
fn of_ten_thousand_planted_literals_normalized_leaves_none() {
    count("literals, normalized", &NORMALIZED, planted_literal());
}

#[test]
fn of_ten_thousand_planted_passwords_raw_leaves_none() {
    count("passwords, raw", &RAW, planted_password());
}

#[test]
fn of_ten_thousand_planted_passwords_normalized_leaves_none() {
    count("passwords, normalized", &NORMALIZED, planted_password());
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
        "1..2 ",
        "+-- '\n",
        "*/*'*/",
        "123abc ",
        "$é$'$é$ ",
        "\u{fffd}$$ ",
        "\r\u{b}\u{c}",
        "a || 'b' || ",
    ])
}

proptest! {
    #[test]
    fn normalized_never_shows_a_planted_literal(text in planted_literal()) {
        never_shows(&NORMALIZED, &text)?;
    }

    #[test]
    fn raw_never_shows_a_planted_password(text in planted_password()) {
        never_shows(&RAW, &text)?;
    }

    #[test]
    fn a_limit_shows_nothing_that_it_did_not_show_without_one(text in planted_password(), limit in 0usize..200) {
        for policy in [RAW, NORMALIZED] {
            let whole = policy.clean(&text, usize::MAX).unwrap_or_default();
            let cut = policy.clean(&text, limit).unwrap_or_default();
            let kept: String = whole.chars().take(limit).collect();
            let want = if kept == whole { whole } else { kept + TRUNCATED };
            prop_assert_eq!(cut, want);
        }
    }

    #[test]
    fn any_text_is_cleaned_without_a_panic(text: String, odd in "[\\\\'\"$a-e&/*: =\\-\nEUuPASWORD1]{0,60}") {
        for text in [text, odd] {
            for beginning in beginnings(&text) {
                let _clean = (RAW.clean(&beginning, 5), NORMALIZED.clean(&beginning, 5));
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
