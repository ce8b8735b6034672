//! `require_auth`: by which methods the server may ask who we are.

use std::fmt;

/// A way in which a server lets somebody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The password itself.
    Password,
    /// A hash of it.
    Md5,
    /// Kerberos, which this agent does not speak.
    Gss,
    /// Windows' own, which this agent does not speak.
    Sspi,
    /// The exchange that proves the password and does not tell it.
    Scram,
    /// A token, which this agent does not speak.
    Oauth,
    /// Nothing is asked: trust, peer, or a client certificate.
    None,
}

const METHODS: &[(&str, Method)] = &[
    ("password", Method::Password),
    ("md5", Method::Md5),
    ("gss", Method::Gss),
    ("sspi", Method::Sspi),
    ("scram-sha-256", Method::Scram),
    ("oauth", Method::Oauth),
    ("none", Method::None),
];

/// The methods that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Methods {
    /// As it was written; empty where everything goes.
    text: String,
    listed: Vec<Method>,
    /// Whether those listed are the forbidden ones.
    negated: bool,
}

impl Methods {
    /// Whatever the server asks for.
    pub const fn any() -> Self {
        Self { text: String::new(), listed: Vec::new(), negated: true }
    }

    /// Understands a list: methods, or methods that each begin with `!`. An empty one is `none`, as in libpq.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = if text.is_empty() { "none" } else { text };
        let mut listed = Vec::new();
        let negated = text.starts_with('!');
        for word in text.split(',') {
            let name = word.strip_prefix('!');
            if name.is_some() != negated {
                return Err("require_auth has to have ! before each method or before none".into());
            }
            let known = METHODS.iter().find(|(known, _)| *known == name.unwrap_or(word));
            let Some((name, method)) = known else {
                let all: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
                return Err(format!("require_auth has to be a list of {}, with commas and no blanks", all.join(", ")));
            };
            if listed.contains(method) {
                return Err(format!("require_auth has to name {name} once only"));
            }
            listed.push(*method);
        }
        Ok(Self { text: text.to_owned(), listed, negated })
    }

    /// Whether the server may ask for this.
    pub fn allow(&self, method: Method) -> bool {
        self.listed.contains(&method) != self.negated
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of password, scram-sha-256 and none are allowed.
    #[track_caller]
    fn check(text: &str, want: Option<[bool; 3]>) {
        let got = Methods::parse(text).ok();
        let got =
            got.map(|methods| [Method::Password, Method::Scram, Method::None].map(|method| methods.allow(method)));
        assert_eq!(got, want, "{text:?}");
    }

    #[test]
    fn a_list_names_what_is_allowed_or_what_is_not() {
        check("", Some([false, false, true]));
        check("scram-sha-256", Some([false, true, false]));
        check("password,none", Some([true, false, true]));
        check("!password", Some([false, true, true]));
        check("!none,!md5", Some([true, true, false]));
        for wrong in ["foo", ",", "!", "password,", "password,!md5", "!md5,none", "md5,md5", "password, md5", "MD5"] {
            check(wrong, None);
        }
    }
}
