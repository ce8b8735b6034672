//! What may leave of a text, judged by the server: statements with constants of every form are run, and what
//! `pg_stat_statements` made of each is compared with what the agent makes of it.
//!
//! The two have the same tokens, whitespace and comments aside, with a constant in ours wherever the server found one. What
//! else differs is the server's: it takes a sign for a part of a number, counts `NULL` and `true` as constants, leaves
//! typmods and `ORDER BY 1` as they are, and since 18 makes one constant of a list.

use std::fmt::Write as _;

use postgres_agent::text::{Policy, QueryText};
use tokio_postgres::Client;

use crate::rig::{
    chance::{Dice, number_from},
    postgres::{Role, Server, VERSIONS},
};

const RAW: Policy = Policy { query_text: QueryText::Raw };
const NORMALIZED: Policy = Policy { query_text: QueryText::Normalized };

fn clean(policy: &Policy, text: &str) -> String {
    policy.clean(text, usize::MAX).unwrap()
}

/// Makes statements that a server accepts, and remembers what it planted.
struct Maker {
    dice: Dice,
    version: u32,
    /// `standard_conforming_strings`
    conforming: bool,
    planted: Vec<String>,
    /// Where a backslash stands before a quote, both of its meanings hide something, and the tokens are fewer.
    two_meanings: bool,
    made: u64,
}

const EXPRESSIONS: &[&str] = &[
    "{t}",
    "{t} ::text",
    "CAST ( {t} AS varchar(900) )",
    "{t} || {t}",
    "coalesce ( NULL , {t} )",
    "{t} = {t}",
    "{t} IN ( {t} , {t} )",
    "{t} = ANY ( ARRAY[ {t} , {t} ] )",
    "CASE WHEN {n} > {n} THEN {t} ELSE {t} END",
    "{n}",
    "-{n}",
    "{n} - -{n}",
    "{n} +--it's\n{n}",
    "{n}-/*it's*/{n}",
    "2 */*'*/{n}",
    "@ -{n}",
    "{n} ::numeric(20,2)",
    "{n} IN ( {n} , -{n} , {n} )",
    "( ARRAY[ {n} , {n} ] ) [1]",
    "B'0101' || b'1'",
    "X'1F' = x'1f'",
    "date '2020-01-02'",
    "interval '1' day",
    "timestamp(3) '2020-01-01'",
    "true IS NOT NULL",
    "{n} BETWEEN {n} AND {n}",
];

const STATEMENTS: &[&str] = &[
    "SELECT {e} AS c1 , {e} AS \"it's 2\" , {e} AS a$1",
    "SELECT {e} , {e} FROM generate_series ( {s} , {s} ) AS g WHERE {n} > {n} ORDER BY 1 LIMIT {s} ;",
    "VALUES ( {t} , {n} ) , ( {t} , {n} )",
    "INSERT INTO planted ( n , t ) VALUES ( {n} , {t} )",
    "UPDATE planted SET t = {t} , n = n + {n} WHERE t <> {t} AND n > {s}",
    "DELETE FROM planted WHERE t = {t} OR n > {n}",
    "WITH c AS ( SELECT {t} AS t ) SELECT t , {e} FROM c WHERE t <> {t}",
    "SELECT {e} AS d , U&\"d\\0061t\" FROM ( SELECT {n} AS \"dat\" ) AS x$",
];

impl Maker {
    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.dice.roll(choices.len() as u64)).unwrap()]
    }

    fn statement(&mut self) -> String {
        self.planted.clear();
        self.two_meanings = false;
        let mut form = self.one_of(STATEMENTS).to_owned();
        while form.contains("{e}") {
            form = form.replacen("{e}", self.one_of(EXPRESSIONS), 1);
        }
        if self.version < 15 && self.dice.roll(4) == 0 {
            "SELECT {n}abc , {t} AS b".clone_into(&mut form);
        }
        let mut statement = String::new();
        for piece in form.split_inclusive([' ', '}']) {
            let (piece, blank) = piece.strip_suffix(' ').map_or((piece, false), |piece| (piece, true));
            let (before, what) = piece.split_once('{').unwrap_or((piece, ""));
            statement += before;
            match what {
                "t}" => statement += &self.text(),
                "n}" => statement += &self.number(),
                "s}" => write!(statement, "{}", self.dice.roll(5)).unwrap(),
                _ => {}
            }
            if blank {
                statement += self.blank();
            }
        }
        statement
    }

    /// What may stand between two tokens.
    fn blank(&mut self) -> &'static str {
        let blanks =
            [" ", " ", " ", "\n", "\t\r\n", " /* it's /* a */ $$ */ ", " -- it's $$\n", "\x0c", " /*/ ' */ ", "\x0b"];
        // The vertical tab came with 17.
        let missing = usize::from(self.version < 17);
        self.one_of(&blanks[..blanks.len() - missing])
    }

    fn text(&mut self) -> String {
        self.made += 1;
        let marker = format!("Ω{}Ω", self.made);
        let mut value = marker.clone();
        for _ in 0..self.dice.roll(5) {
            value += self
                .one_of(&["'", "''", "\\", "--", "/*", "*/", "$", "$$", "\n", "\"", ";", "é", " ", "{", "password"]);
        }
        value += &marker;
        self.planted.push(marker);
        let quoted = value.replace('\'', "''");
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        let plain = match self.dice.roll(3) {
            _ if self.conforming => quoted.clone(),
            0 => escaped.clone(),
            _ => quoted.replace('\\', "\\\\"),
        };
        // The form with Unicode escapes is refused where backslashes escape anyway.
        let form = self.dice.roll(if self.conforming { 10 } else { 8 });
        let odd = |before: &str| before.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1;
        self.two_meanings |= matches!(form, 0 | 1 | 4 | 7) && plain.split('\'').any(odd);
        match form {
            0 | 1 => format!("'{plain}'"),
            2 => format!("E'{escaped}'"),
            3 => format!("e'\\x41{}\\101\\u0041'", quoted.replace('\\', "\\\\")),
            4 => format!("N'{plain}'"),
            5 => format!("$q${value}$q$"),
            6 => format!("$é1_${value}$é1_$"),
            7 => format!("'Ω'\r\n -- it's\n\t'{plain}' --'\n''"),
            8 => format!("U&'\\0041{}\\+000041'", quoted.replace('\\', "\\\\")),
            _ => format!("u&'!0041{quoted}' UESCAPE '!'"),
        }
    }

    fn number(&mut self) -> String {
        self.made += 1;
        let digits = (9_000_000 + self.made).to_string();
        let (high, low) = digits.split_at(4);
        let since_16 = if self.version < 16 { 0 } else { 4 };
        let (marker, number) = match self.dice.roll(6 + since_16) {
            0 | 1 => (digits.clone(), digits),
            2 => (digits.clone(), format!("{digits}.")),
            3 => (digits.clone(), format!(".{digits}")),
            4 => (digits.clone(), format!("{digits}.5e-1")),
            5 => (low.to_owned() + "e1", format!("{high}.{low}e1")),
            6 => (format!("{:x}", 9_000_000 + self.made), format!("0x{:x}", 9_000_000 + self.made)),
            7 => (format!("{high}_{low}"), format!("{high}_{low}")),
            8 => (format!("{:o}", 9_000_000 + self.made), format!("0O_{:o}", 9_000_000 + self.made)),
            _ => (format!("{:b}", 9_000_000 + self.made), format!("0b{:b}", 9_000_000 + self.made)),
        };
        self.planted.push(marker);
        number
    }
}

/// The tokens of a text without literals but a few simple ones, written independently of the agent's lexer: words and signs
/// as they are, `?` for a constant, `…` where the server made one of a list. And how many constants are literals.
fn tokens(text: &str) -> (Vec<String>, usize) {
    let chars: Vec<char> = text.chars().collect();
    let at = |place: usize| chars.get(place).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let (mut tokens, mut literals, mut place) = (Vec::new(), 0, 0);
    while place < chars.len() {
        let start = place;
        let until = |mut place: usize, end: &dyn Fn(usize) -> bool| {
            while place < chars.len() && !end(place) {
                place += 1;
            }
            place
        };
        let piece = |end: usize| chars[start..end].iter().collect::<String>();
        match (at(place), at(place + 1)) {
            (' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c', _) => place += 1,
            ('-', '-') => place = until(place, &|place| matches!(at(place), '\n' | '\r')),
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(place), at(place + 1)) {
                        ('/', '*') => (depth, place) = (depth + 1, place + 2),
                        ('*', '/') => (depth, place) = (depth - 1, place + 2),
                        _ => place += 1,
                    }
                    if depth == 0 || place >= chars.len() {
                        break;
                    }
                }
                tokens.extend((piece(place) == "/*, ... */").then(|| "…".to_owned()));
            }
            (quote @ ('\'' | '"'), _) => {
                place = until(place + 1, &|place| at(place) == quote) + 1;
                literals += usize::from(quote == '\'');
                tokens.push(if quote == '"' { piece(place) } else { "?".to_owned() });
            }
            ('$', '0'..='9') => {
                place = until(place + 1, &|place| !at(place).is_ascii_digit());
                tokens.push("?".to_owned());
            }
            ('0'..='9', _) => {
                place = until(place, &|place| !at(place).is_ascii_digit());
                literals += 1;
                tokens.push("?".to_owned());
            }
            (c, _) if is_word(c) => {
                place = until(place, &|place| !is_word(at(place)));
                let word = piece(place);
                // The server leaves the N of N'…'.
                let national = word.strip_prefix('N').and_then(|rest| rest.strip_prefix('$'));
                tokens.push(if national.is_some_and(|n| n.parse::<u32>().is_ok()) { "?".to_owned() } else { word });
            }
            (c, _) => {
                place += 1;
                tokens.push(c.to_string());
            }
        }
    }
    (tokens, literals)
}

/// Why the tokens of ours and of the server's text differ, if they do.
fn difference(ours: &[String], theirs: &[String]) -> Option<String> {
    let (mut our, mut their) = (0, 0);
    loop {
        let get = |tokens: &[String], place: usize| tokens.get(place).cloned().unwrap_or_default();
        let (one, other) = (get(ours, our), get(theirs, their));
        match (one.as_str(), other.as_str()) {
            ("", "") => return None,
            // One constant for a list: up to its closing bracket.
            (_, "?") if get(theirs, their + 1) == "…" => {
                let mut depth = 0;
                while our < ours.len() && (depth > 0 || !matches!(ours[our].as_str(), ")" | "]")) {
                    depth += i32::from(matches!(ours[our].as_str(), "(" | "["));
                    depth -= i32::from(matches!(ours[our].as_str(), ")" | "]"));
                    our += 1;
                }
                their += 2;
            }
            ("-", "?") => our += 1,
            ("NULL" | "true", "?") => (our, their) = (our + 1, their + 1),
            (one, other) if one == other => (our, their) = (our + 1, their + 1),
            _ => return Some(format!("token {our}: {one:?} is no {other:?}")),
        }
    }
}

/// A statement, run; what the server made of it, and what it shows of the session.
async fn run(session: &Client, observer: &Client, pid: i32, statement: &str) -> (String, String) {
    let user = "(SELECT oid FROM pg_roles WHERE rolname = 'plain')";
    observer.batch_execute(&format!("SELECT pg_stat_statements_reset({user}, 0::oid, 0)")).await.unwrap();
    session.batch_execute(statement).await.unwrap_or_else(|error| panic!("{error:?}: {statement:?}"));
    let seen = format!("SELECT query FROM pg_stat_statements WHERE userid = {user}");
    let rows = observer.query(&seen, &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "{statement:?}");
    let activity = observer.query_one("SELECT query FROM pg_stat_activity WHERE pid = $1", &[&pid]).await.unwrap();
    (rows[0].get(0), activity.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_takes_for_a_constant_never_leaves_and_all_else_does() {
    let count: u64 = number_from("TEXT_STATEMENTS").unwrap_or(100);
    for version in VERSIONS {
        let server = Server::with_settings(version, "track_activity_query_size = 16kB");
        server.sql("CREATE TABLE planted (n numeric, t text); GRANT ALL ON planted TO plain");
        let observer = server.session(Role::Postgres, "observer").await;
        let session = server.session(Role::Plain, "session").await;
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let (mut planted, mut cleaned, mut compared) = (0, 0, 0);
        for conforming in [true, false] {
            let settings = format!("SET escape_string_warning = off; SET standard_conforming_strings = {conforming}");
            session.batch_execute(&settings).await.unwrap();
            let dice = Dice::new(number_from("TEXT_SEED").unwrap_or(1) + u64::from(version));
            let mut maker = Maker { dice, version, conforming, planted: Vec::new(), two_meanings: false, made: 0 };
            for _ in 0..count {
                let statement = maker.statement();
                let (theirs, sent) = run(&session, &observer, pid, &statement).await;
                assert_eq!(sent, statement, "{version}");
                let ours = clean(&NORMALIZED, &sent);
                // Of a text the server takes each statement for itself, without its semicolon.
                let (our_tokens, literals) = tokens(ours.trim_end().trim_end_matches(';'));
                let (their_tokens, _) = tokens(&theirs);
                assert_eq!(literals, 0, "{version}: {ours:?} of {sent:?}");
                let difference = difference(&our_tokens, &their_tokens);
                let difference = difference.filter(|_| !maker.two_meanings);
                compared += u64::from(!maker.two_meanings);
                assert_eq!(difference, None, "{version}, {conforming}:\n{sent:?}\n{ours:?}\n{theirs:?}");
                // So does its own text, which has literals where it leaves them.
                let again = clean(&NORMALIZED, &theirs);
                assert_eq!(tokens(&again).1, 0, "{version}: {again:?} of {theirs:?}");
                planted += maker.planted.len();
                for end in (0..=sent.len()).step_by(3).chain([sent.len()]) {
                    let ours = clean(&NORMALIZED, &String::from_utf8_lossy(&sent.as_bytes()[..end]));
                    let left = maker.planted.iter().find(|marker| ours.contains(*marker));
                    assert_eq!(left, None, "{version}, {conforming}: {:?} became {ours:?}", &sent.as_bytes()[..end]);
                    cleaned += 1;
                }
            }
        }
        println!(
            "{version}: {} statements, {compared} compared token by token, planted {planted}, found 0 in {cleaned} texts",
            2 * count
        );
        assert!(compared > count, "{version}: {compared} compared");
    }
}

/// Statements with passwords that the server accepts, and a query that tells what it made of the password.
const PASSWORDS: [(&str, &str); 9] = [
    ("CREATE ROLE one PASSWORD 'md5%'", "SELECT rolpassword FROM pg_authid WHERE rolname = 'one'"),
    ("ALTER ROLE one PASSWORD -- it's\n E'\\x6dd5%'", "SELECT rolpassword FROM pg_authid WHERE rolname = 'one'"),
    (
        "ALTER USER one WITH ENCRYPTED PASSWORD /* it's */ $$md5%$$",
        "SELECT rolpassword FROM pg_authid WHERE rolname = 'one'",
    ),
    (
        "CREATE USER MAPPING FOR one SERVER two OPTIONS (user 'u', password '%')",
        "SELECT umoptions FROM pg_user_mappings",
    ),
    (
        "ALTER USER MAPPING FOR one SERVER two OPTIONS (SET U&\"p!0061ssword\" UESCAPE '!' '%', ADD a 'b')",
        "SELECT umoptions FROM pg_user_mappings",
    ),
    (
        "CREATE SUBSCRIPTION three CONNECTION E'host=127.0.0.1 pass\\x77ord=%' PUBLICATION p WITH (connect = false)",
        "SELECT subconninfo FROM pg_subscription",
    ),
    (
        "ALTER SUBSCRIPTION three CONNECTION U&'host=127.0.0.1 p!0061ssword=%' UESCAPE '!'",
        "SELECT subconninfo FROM pg_subscription",
    ),
    (
        "ALTER SUBSCRIPTION three CONNECTION 'host=127.0.0.1 pass' -- it's\n\n  'word=%'",
        "SELECT subconninfo FROM pg_subscription",
    ),
    ("ALTER SUBSCRIPTION three CONNECTION 'postgresql://u:%@127.0.0.1/d'", "SELECT subconninfo FROM pg_subscription"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_takes_for_a_password_never_leaves() {
    let secret = "0123456789abcdef0123456789abcdef";
    for version in VERSIONS {
        let server = Server::private(version);
        server.sql("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER two FOREIGN DATA WRAPPER w");
        let observer = server.session(Role::Postgres, "observer").await;
        let session = server.session(Role::Postgres, "session").await;
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        for (statement, kept) in PASSWORDS {
            let statement = statement.replace('%', secret);
            session
                .batch_execute(&statement)
                .await
                .unwrap_or_else(|error| panic!("{version}: {error:?}: {statement:?}"));
            let kept: String = server.sql(kept);
            assert!(kept.contains(secret), "{version}: {statement:?} made {kept:?}");
            let seen = "SELECT query FROM pg_stat_activity WHERE pid = $1
                UNION ALL SELECT query FROM pg_stat_statements WHERE query ~ '[0-9a-f]{20}'";
            let texts = observer.query(seen, &[&pid]).await.unwrap();
            assert!(texts.iter().any(|row| row.get::<_, String>(0).contains(secret)), "{version}: {statement:?}");
            for text in texts.iter().map(|row| row.get::<_, String>(0)) {
                for end in 0..=text.len() {
                    for policy in [RAW, NORMALIZED] {
                        let ours = clean(&policy, &text[..end]);
                        assert!(!ours.contains(&secret[..3]), "{version}: {:?} became {ours:?}", &text[..end]);
                    }
                }
            }
        }
        server.sql("ALTER SUBSCRIPTION three SET (slot_name = NONE); DROP SUBSCRIPTION three");
    }
}
