//! What stands in a connection string: libpq's two forms, read as libpq reads them, into keyword and value.
//!
//! Pure, and it knows no meaning: which values are allowed is `conninfo`'s work. The surprising thing: no error
//! repeats what was given. A password with a blank in it and no quotes is the usual mistake, and half of it would
//! end up in a log.

use std::collections::BTreeMap;

use super::KEYWORDS;

/// Keyword and value. Of a keyword given twice the last one counts, as in libpq.
pub type Pairs = BTreeMap<&'static str, String>;

/// Reads a connection URI or a `key=value` string.
///
/// # Errors
/// What is wrong and at which character (from 1), without the text itself.
pub fn parse(text: &str) -> Result<Pairs, String> {
    if text.contains('\0') {
        return Err("a connection string without a zero byte".into());
    }
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match uri {
        Some(rest) => uri_pairs(rest),
        None => key_value_pairs(text).map_err(|problem| {
            let scheme = text.split_once("://").map(|(scheme, _)| scheme);
            let uri = scheme.is_some_and(|scheme| scheme.chars().all(char::is_alphanumeric));
            if uri { "a URI that begins with postgresql:// or postgres://".into() } else { problem }
        }),
    }
}

/// What C calls a space.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// Splits at the first of some characters: what stands before, the character, what follows.
fn cut<'a>(text: &'a str, stops: &[char]) -> (&'a str, Option<char>, &'a str) {
    let Some((at, stop)) = text.char_indices().find(|(_, c)| stops.contains(c)) else {
        return (text, None, "");
    };
    let (head, tail) = text.split_at(at);
    (head, Some(stop), tail.strip_prefix(stop).unwrap_or(""))
}

fn uri_pairs(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut rest = text;
    if let (userinfo, Some('@'), after) = cut(text, &['@', '/']) {
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        store(&mut pairs, "user", user)?;
        store(&mut pairs, "password", password)?;
        rest = after;
    }
    let (hosts, ports, mut stop, after) = host_list(rest)?;
    rest = after;
    store(&mut pairs, "host", &hosts)?;
    store(&mut pairs, "port", &ports)?;
    if stop == Some('/') {
        let (dbname, next, after) = cut(rest, &['?']);
        store(&mut pairs, "dbname", dbname)?;
        (stop, rest) = (next, after);
    }
    if stop == Some('?') {
        // One "&" at the end is as good as none.
        let parameters = rest.strip_suffix('&').unwrap_or(rest);
        for parameter in parameters.split('&').filter(|_| !rest.is_empty()) {
            query_parameter(&mut pairs, parameter)?;
        }
    }
    Ok(pairs)
}

/// `host:port,host:port…`: the hosts and the ports, comma separated, what ended them, and what follows.
fn host_list(text: &str) -> Result<(String, String, Option<char>, &str), String> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    let mut rest = text;
    loop {
        let mut stop;
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (address, end, after) = cut(bracketed, &[']']);
            if end.is_none() || address.is_empty() {
                return Err("a URI whose IPv6 address stands in [ and ]".into());
            }
            hosts.push_str(address);
            let (nothing, next, after) = cut(after, &[':', '/', '?', ',']);
            if !nothing.is_empty() {
                return Err("a URI that has \":\", \"/\", \"?\" or \",\" after \"]\"".into());
            }
            (stop, rest) = (next, after);
        } else {
            let (host, next, after) = cut(rest, &[':', '/', '?', ',']);
            hosts.push_str(host);
            (stop, rest) = (next, after);
        }
        if stop == Some(':') {
            let (port, next, after) = cut(rest, &['/', '?', ',']);
            ports.push_str(port);
            (stop, rest) = (next, after);
        }
        if stop != Some(',') {
            return Ok((hosts, ports, stop, rest));
        }
        hosts.push(',');
        ports.push(',');
    }
}

fn query_parameter(pairs: &mut Pairs, parameter: &str) -> Result<(), String> {
    let Some((key, value)) = parameter.split_once('=') else {
        return Err("a URI whose parameters each have a \"=\"".into());
    };
    if value.contains('=') {
        return Err("a URI whose parameters each have one \"=\" only: another one is written %3D".into());
    }
    let (key, value) = (percent_decoded(key)?, percent_decoded(value)?);
    // JDBC's way to say it, which libpq understands too.
    let (key, value) = if key == "ssl" && value == "true" { ("sslmode", "require".into()) } else { (&*key, value) };
    say(pairs, key, value, "in a URI's parameters")
}

/// Takes note of a value, under the name that its keyword has today.
fn say(pairs: &mut Pairs, key: &str, value: String, place: &str) -> Result<(), String> {
    let (key, value) = match key {
        // From before there was an sslmode; libpq still knows it.
        "requiressl" => ("sslmode", if value.starts_with('1') { "require" } else { "prefer" }.into()),
        _ => (key, value),
    };
    let keyword = keyword(key).ok_or_else(|| unknown(key, place))?;
    pairs.insert(keyword, value);
    Ok(())
}

fn store(pairs: &mut Pairs, key: &'static str, raw: &str) -> Result<(), String> {
    if !raw.is_empty() {
        pairs.insert(key, percent_decoded(raw)?);
    }
    Ok(())
}

fn percent_decoded(text: &str) -> Result<String, String> {
    const ALLOWED: &str = "a URI with two hexadecimal digits (not 00) after each %: a plain % is written %25";
    let text = text.trim_start_matches(' ');
    let (text, _, rest) = cut(text, &[' ']);
    if !rest.trim_start_matches(' ').is_empty() {
        return Err("a URI without blanks inside: a blank is written %20".into());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let code = digit(bytes.next()).zip(digit(bytes.next())).map(|(high, low)| high * 16 + low);
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(code) if code != 0 => out.push(code),
            _ => return Err(ALLOWED.into()),
        }
    }
    String::from_utf8(out).map_err(|_| "a URI whose percent-encoded bytes are UTF-8".into())
}

fn key_value_pairs(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut chars = text.char_indices().peekable();
    while let Some(&(at, c)) = chars.peek() {
        if is_blank(c) {
            chars.next();
            continue;
        }
        let mut key = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !is_blank(*c)) {
            key.push(c);
        }
        while chars.next_if(|(_, c)| is_blank(*c)).is_some() {}
        let position = format!("at character {}", at + 1);
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            return Err(format!("key=value pairs: the word {position} has no \"=\" (quote values that hold blanks)"));
        }
        while chars.next_if(|(_, c)| is_blank(*c)).is_some() {}
        let value = if chars.next_if(|(_, c)| *c == '\'').is_some() {
            quoted(&mut chars)
                .ok_or_else(|| format!("key=value pairs: the quote of the value {position} is not closed"))?
        } else {
            unquoted(&mut chars)
        };
        say(&mut pairs, &key, value, &position)?;
    }
    Ok(pairs)
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn quoted(chars: &mut Chars<'_>) -> Option<String> {
    let mut value = String::new();
    loop {
        match chars.next()?.1 {
            '\'' => return Some(value),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
}

fn unquoted(chars: &mut Chars<'_>) -> String {
    let mut value = String::new();
    while let Some((_, c)) = chars.next_if(|(_, c)| !is_blank(*c)) {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    value
}

/// libpq's own keyword of this name.
pub(super) fn keyword(key: &str) -> Option<&'static str> {
    KEYWORDS.iter().map(|keyword| keyword.name).find(|name| *name == key)
}

/// Names the nearest keyword, never what was given: it may be a part of a password.
fn unknown(key: &str, place: &str) -> String {
    let near = KEYWORDS.iter().map(|keyword| (distance(keyword.name, key), keyword.name)).min();
    let hint = near.filter(|(distance, _)| *distance <= 2).map(|(_, name)| format!(" (did you mean {name}?)"));
    format!("a connection string of known keywords: there is an unknown one {place}{}", hint.unwrap_or_default())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut diagonal = i;
        let mut next = vec![left];
        for (y, above) in b.chars().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(x != y)).min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[(&str, &str)]) {
        let want: BTreeMap<&str, String> = want.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(parse(text).as_ref(), Ok(&want), "{text:?}");
    }

    #[track_caller]
    fn refused(text: &str) {
        let error = parse(text).expect_err(text);
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        // The cases of PostgreSQL's own src/interfaces/libpq/test/uri-regress.
        check(
            "postgresql://uri-user:secret@host:12345/db",
            &[("user", "uri-user"), ("password", "secret"), ("host", "host"), ("port", "12345"), ("dbname", "db")],
        );
        check("postgresql://uri-user@host/", &[("user", "uri-user"), ("host", "host")]);
        check("postgresql://", &[]);
        check("postgresql://?hostaddr=127.0.0.1", &[("hostaddr", "127.0.0.1")]);
        check("postgresql://%68ost/", &[("host", "host")]);
        check(
            "postgresql://host/db?u%73er=someotheruser&port=12345",
            &[("host", "host"), ("dbname", "db"), ("user", "someotheruser"), ("port", "12345")],
        );
        check("postgresql://[2001:db8::1234]/", &[("host", "2001:db8::1234")]);
        check("postgres://[::1]:12345/db", &[("host", "::1"), ("port", "12345"), ("dbname", "db")]);
        check("postgres://%2Fvar%2Flib%2Fpostgresql/dbname", &[("host", "/var/lib/postgresql"), ("dbname", "dbname")]);
        check("postgres:///d?host=/tmp", &[("dbname", "d"), ("host", "/tmp")]);
        check("postgres://h?ssl=true", &[("host", "h"), ("sslmode", "require")]);
        check("postgres://a:1,b,c:3/d", &[("host", "a,b,c"), ("port", "1,,3"), ("dbname", "d")]);
        check("postgres://a,b/d", &[("host", "a,b"), ("port", ","), ("dbname", "d")]);
        check("postgres:// h /d%20?user= u &", &[("host", "h"), ("dbname", "d "), ("user", "u")]);
        check("postgres://h?requiressl=1", &[("host", "h"), ("sslmode", "require")]);
        check("postgres://h?%73sl=%74rue", &[("host", "h"), ("sslmode", "require")]);
        check("postgres://u:p%40ss%25@h", &[("user", "u"), ("password", "p@ss%"), ("host", "h")]);
        check("postgres://@h", &[("host", "h")]);
    }

    #[test]
    fn uris_that_libpq_refuses_are_refused_without_a_word_of_them() {
        for text in [
            "postgresql://h/db?hunter2=1",
            "postgresql://h/db?hunter2",
            "postgresql://h/db?user=u=hunter2",
            "postgresql://u:hunter2%@h",
            "postgresql://u:hunter2%zz@h",
            "postgresql://u:hunter2%00@h",
            "postgresql://[::1",
            "postgresql://[]/",
            "postgresql://h/d?user=my hunter2",
            "postgresql://h?&",
            "postgresql://[::1]z",
            "http://u:hunter2@h",
        ] {
            refused(text);
        }
    }

    #[test]
    fn key_value_strings_have_libpqs_quotes_and_backslashes() {
        check("", &[]);
        check("host=h  port = 5433 ", &[("host", "h"), ("port", "5433")]);
        check(r"password='it\'s a \\ secret' user=u", &[("password", r"it's a \ secret"), ("user", "u")]);
        check(r"password=a\ b\'c", &[("password", "a b'c")]);
        check("host='' user=", &[("host", ""), ("user", "")]);
        check("user=a user=b", &[("user", "b")]);
        check("password=a://b\x0bhost=h", &[("password", "a://b"), ("host", "h")]);
        check("application_name='x' options='-c a=b'", &[("application_name", "x"), ("options", "-c a=b")]);
        for text in ["host=h hunter2", "password='hunter2", "hunter2=1", "mydb", "password=my hunter2=x", "=x"] {
            refused(text);
        }
    }

    #[test]
    fn an_unknown_keyword_is_answered_with_the_nearest_one() {
        assert!(parse("sslmod=require").expect_err("unknown").contains("sslmode"));
    }
}
