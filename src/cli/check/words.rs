//! Words of the languages that mends are written in: a shell, SQL, TOML. Pure.

/// A text as one word of a shell.
pub(super) fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A name as SQL has it.
pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Who the agent runs as, as one word of a shell: its user's name, or the one that the package makes.
pub(super) fn user() -> String {
    word(&whoami::username().unwrap_or_else(|_| "postgres_agent".into()))
}

/// A text as TOML has it.
pub(super) fn text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A shell's command that runs SQL as a superuser.
pub(super) fn psql(sql: &str) -> String {
    format!("psql -Xqc {}", word(sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_in_each_language() {
        assert_eq!([word("a.b-1"), word("a b"), word("it's"), word("#")], ["a.b-1", "'a b'", r"'it'\''s'", "'#'"]);
        assert_eq!([name("agent"), name("a\"b")], ["\"agent\"", "\"a\"\"b\""]);
        assert_eq!(psql("SELECT 'x'"), r"psql -Xqc 'SELECT '\''x'\'''");
        assert_eq!(text("a\"b"), "'a\"b'");
    }
}
