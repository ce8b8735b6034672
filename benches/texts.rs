//! What cleaning a text costs: nanoseconds for each byte of it, by its length, and memory. Linear means that they stay the
//! same.
//!
//! `cargo bench --bench texts`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "figures are for a person, who is there when one is missing"
)]

use std::{fs, hint::black_box};

use postgres_agent::text::{Policy, QueryText, Trace};

const SIZES: [usize; 4] = [1 << 10, 10 << 10, 100 << 10, 1 << 20];

/// A text is a piece, again and again: ordinary ones, and what could make a reader begin anew at each byte.
const PIECES: [(&str, &str); 16] = [
    ("ordinary", "SELECT a.b, count(*) FROM t1 a WHERE a.c = 'some text' AND a.d > 42 -- why\n AND e IN (1, 2, 3);\n"),
    ("one literal", "x"),
    ("quotes", "'"),
    ("dollars", "$"),
    ("dollar tags", "$a"),
    ("nested comments", "/*"),
    ("backslashes", "\\"),
    ("escaped quotes", "\\'"),
    ("password", "password"),
    ("password ", "password "),
    ("passwords in literals", "'password' "),
    ("passwords of roles", "ALTER ROLE PASSWORD x;"),
    ("URLs", "'a://b:c"),
    ("lines of literals", "'\n"),
    ("comments between lines", "'--'\n"),
    ("traceparents", "/*traceparent='00-"),
];

/// Time of the processor that this thread had, whoever else wants it: in nanoseconds, to a few milliseconds.
fn spent() -> f64 {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells the times of a thread");
    schedstat.split(' ').next().and_then(|time| time.parse().ok()).expect("a number")
}

fn nanoseconds_per_byte(text: &str, clean: impl Fn(&str)) -> f64 {
    let runs = (8 << 20) / text.len();
    let start = spent();
    (0..runs).for_each(|_| clean(black_box(text)));
    (spent() - start) / (runs * text.len()) as f64
}

fn main() {
    for (name, query_text) in [("raw", QueryText::Raw), ("normalized", QueryText::Normalized)] {
        let policy = Policy { query_text };
        println!("{name:<30} ns/byte at 1 KiB   10 KiB  100 KiB    1 MiB");
        for (what, piece) in PIECES {
            let figures = SIZES.map(|size| {
                let start = if what == "one literal" { "SELECT '" } else { "" };
                let text = start.to_owned() + &piece.repeat(size / piece.len());
                nanoseconds_per_byte(&text, |text| {
                    black_box((policy.clean(text, usize::MAX), Trace::find(None, Some(text))));
                })
            });
            let [kib, ten, hundred, mib] = figures;
            println!("  {what:<30} {kib:>13.1} {ten:>8.1} {hundred:>8.1} {mib:>8.1}");
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let highest = status.lines().find(|line| line.starts_with("VmHWM"));
        println!("  the process at its largest so far, with a text of 1 MiB: {}", highest.unwrap_or("not known"));
    }
}
