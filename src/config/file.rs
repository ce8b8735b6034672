//! The configuration file: TOML to values by path, each with its line.
//!
//! Pure: text in, values and mistakes out. The parser goes on after a mistake, so that all are told at once. What it
//! then takes for a value on a broken line is thrown away: half a password would be quoted as an unknown key.

use std::{ops::Range, path::Path};

use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use crate::settings::{Given, Mistake, Origin, Raw, Values, join};

/// What a file says, and what is wrong with it, by its place.
pub(super) fn parse(path: &Path, text: &str) -> (Values, Vec<(Origin, Mistake)>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut entries = Vec::new();
    flatten("", table.get_ref(), &mut entries);
    let lines = Lines { text, path };
    let mut mistakes = Vec::new();
    let mut broken = Vec::new();
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let line = lines.line(span.start);
        // Two errors at one place are one mistake to a person.
        if broken.contains(&line) {
            continue;
        }
        let origin = lines.origin(line);
        let mistake = if error.message() == "duplicate key" {
            lines.twice(&entries, &span, &origin)
        } else {
            broken.extend(lines.misread(line));
            let at = entries.iter().filter(|entry| entry.holds(span.start) || lines.line(entry.key.start) == line);
            let at = at
                .max_by_key(|entry| entry.key.start)
                .map_or_else(|| origin.to_string(), |entry| format!("{} ({origin})", entry.path));
            format!("{at} is not valid TOML: {}", error.message())
        };
        mistakes.push((origin, Mistake(mistake)));
    }
    let values = entries.into_iter().filter_map(|entry| {
        let line = lines.line(entry.key.start);
        let given = Given { raw: Raw::Toml(entry.value), origin: lines.origin(line) };
        (!broken.contains(&line)).then_some((entry.path, given))
    });
    (values.collect(), mistakes)
}

/// One key of the file: a value, or a table whose keys follow.
struct Entry {
    path: String,
    name: String,
    key: Range<usize>,
    span: Range<usize>,
    value: Value,
}

impl Entry {
    fn holds(&self, offset: usize) -> bool {
        !self.value.is_table() && (self.span.start..=self.span.end).contains(&offset)
    }
}

fn flatten(outer: &str, table: &DeTable<'_>, entries: &mut Vec<Entry>) {
    for (key, value) in table {
        let name = key.get_ref().to_string();
        let path = join(outer, &name);
        let spans = (key.span(), value.span());
        entries.push(Entry { path: path.clone(), name, key: spans.0, span: spans.1, value: plain(value) });
        if let DeValue::Table(table) = value.get_ref() {
            flatten(&path, table, entries);
        }
    }
}

fn plain(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        // A number that fits into no integer is still a number, and its key says which ones are allowed.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(plain).collect()),
        DeValue::Table(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value))).collect())
        }
    }
}

/// The file by its lines, counted from 1.
struct Lines<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Lines<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line }
    }

    /// The lines that a broken one spoils: itself, and the whole table if it was to open one.
    fn misread(&self, broken: usize) -> Range<usize> {
        let header = |line: &str| line.trim_start().starts_with('[');
        let mut rest = (1..).zip(self.text.lines()).skip(broken - 1);
        let opens = rest.next().is_some_and(|(_, line)| header(line));
        let next = rest.find(|(_, line)| header(line)).map_or(usize::MAX, |(number, _)| number);
        if opens { broken..next.min(self.text.lines().count() + 1) } else { broken..broken + 1 }
    }

    /// A key or a table that stands twice.
    fn twice(&self, entries: &[Entry], span: &Range<usize>, origin: &Origin) -> String {
        if let Some(table) = entries.iter().find(|entry| entry.key == *span) {
            return format!("{} ({origin}) stands twice: a table can be opened only once", table.path);
        }
        let name = self.text.get(span.clone()).unwrap_or_default();
        let name = name.trim_matches(['"', '\'']);
        // A table cannot be opened again, so the last one of this name before is the one in the same table.
        let before = entries.iter().filter(|entry| entry.name == name && entry.key.start < span.start);
        match before.max_by_key(|entry| entry.key.start) {
            Some(first) => {
                format!("{} ({origin}) stands twice: first on line {}", first.path, self.line(first.key.start))
            }
            None => format!("{name} ({origin}) stands twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, values: &[&str], mistakes: &[&str]) {
        let (got, wrong) = parse(Path::new("f"), text);
        let got = got.iter().filter_map(|(path, given)| match &given.raw {
            Raw::Toml(Value::Table(_)) | Raw::Text(_) => None,
            Raw::Toml(value) => Some(format!("{path} = {value} ({})", given.origin)),
        });
        assert_eq!(got.collect::<Vec<_>>(), values, "{text}");
        assert_eq!(wrong.iter().map(|(_, mistake)| mistake.0.as_str()).collect::<Vec<_>>(), mistakes, "{text}");
    }

    #[test]
    fn each_value_has_its_line() {
        check(
            "# A comment.\n[postgres]\npool_size = 0x10\n\nspool.dir = '/x'\n[agent.labels]\n\"a.b\" = 'c'\n",
            &[
                "agent.labels.\"a.b\" = \"c\" (f:7)",
                "postgres.pool_size = 16 (f:3)",
                "postgres.spool.dir = \"/x\" (f:5)",
            ],
            &[],
        );
        check("\u{feff}a = 1\r\nb = [1,\r\n 2]\r\n", &["a = 1 (f:1)", "b = [1, 2] (f:2)"], &[]);
        check("agent = { name = 'x' }", &["agent.name = \"x\" (f:1)"], &[]);
    }

    #[test]
    fn all_mistakes_of_the_text_are_told_at_once() {
        check(
            "[a]\nx = 1\ny = oh no\nx = 2\n[b]\nz = 1.2.3\n[a]\n",
            &["a.x = 1 (f:2)"],
            &[
                "a.y (f:3) is not valid TOML: string values must be quoted, expected literal string",
                "a.x (f:4) stands twice: first on line 2",
                "b.z (f:6) is not valid TOML: invalid float, expected nothing",
                "a (f:7) stands twice: a table can be opened only once",
            ],
        );
        check(
            "a = 1\n[b\nc = 1\n[d]\ne = 1\n",
            &["a = 1 (f:1)", "d.e = 1 (f:5)"],
            &["f:2 is not valid TOML: unclosed table, expected `]`"],
        );
    }

    #[test]
    fn nothing_of_a_broken_line_is_quoted() {
        for text in ["url = hunter2", "url = \"a\" hunter2", "url = a = hunter2", "url = 'hunter2", "url hunter2 = 1"] {
            let (values, mistakes) = parse(Path::new("f"), text);
            assert!(values.is_empty() && !mistakes.is_empty(), "{text}");
            assert!(!format!("{mistakes:?}").contains("hunter2"), "{mistakes:?}");
        }
    }
}
