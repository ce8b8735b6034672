//! Made-up connection strings: libpq and our own parser read the same in them, or both refuse them.

use postgres_agent::postgres::conninfo;

use super::judge::Judge;
use crate::rig::chance::{Dice, number_from};

/// What strings are made of: what means something to libpq, and something of everything else.
const PIECES: &[&str] = &[
    "postgres://",
    "postgresql://",
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "requiressl",
    "ssl",
    "service",
    "options",
    "=",
    "=",
    "=",
    "'",
    "'",
    "\\",
    " ",
    " ",
    "\t",
    "\n",
    "\u{b}",
    "%",
    "%20",
    "%41",
    "%4",
    "%00",
    "%zz",
    "%C3%A9",
    "%ff",
    "@",
    ":",
    "/",
    "?",
    "&",
    ",",
    "[",
    "]",
    "::1",
    "127.0.0.1",
    "a",
    "b",
    "1",
    "true",
    "require",
    "é",
    "\u{1f600}",
    "\"",
    "-c",
    ".",
    "*",
];

fn made_up(dice: &mut Dice) -> String {
    let start = ["", "", "postgres://", "postgresql://", "host=a ", "postgres://u:p@h/d?"]
        [usize::try_from(dice.roll(6)).unwrap()];
    let pieces = (0..dice.roll(12)).map(|_| PIECES[usize::try_from(dice.roll(PIECES.len() as u64)).unwrap()]);
    start.to_owned() + &pieces.collect::<String>()
}

#[test]
fn made_up_strings_mean_to_us_what_they_mean_to_libpq() {
    let seed = number_from("FAULT_SEED").unwrap_or_else(crate::rig::chance::now_ms);
    println!("FAULT_SEED={seed}");
    let (mut judge, mut dice) = (Judge::start(), Dice::new(seed));
    let wanted: u64 = number_from("LIBPQ_STRINGS").unwrap_or(20_000);
    let (mut accepted, mut count) = (0_u64, 0);
    while count < wanted {
        let texts: Vec<String> = (0..1000).map(|_| made_up(&mut dice)).collect();
        for (text, want) in texts.iter().zip(judge.parse(&texts)) {
            let got = conninfo::parse(text);
            // The judge's bytes need not be UTF-8, ours have to.
            if got.as_ref().is_err_and(|told| told.contains("UTF-8")) {
                assert!(text.contains('%'), "{text:?}");
                continue;
            }
            let got = got.map(|said| said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()).ok();
            assert_eq!(got, want, "{text:?}");
            accepted += u64::from(want.is_some());
            count += 1;
        }
    }
    println!("figure: {count} made-up strings read alike, {accepted} of them accepted");
    assert!(accepted > count / 20, "{accepted} of {count} strings are accepted: the others prove little");
}
