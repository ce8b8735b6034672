//! Sight: what the agent's role may not see, what could not be read, and what mends it.

use crate::postgres::{Error, Identity};

/// Rows that could not be read: each is left out and counted, and the sample goes on.
#[derive(Debug, Default)]
pub struct Unreadable {
    count: u64,
    first: Option<Error>,
}

impl Unreadable {
    /// One more.
    pub fn note(&mut self, error: Error) {
        self.count += 1;
        self.first.get_or_insert(error);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Why a sample is less than it could be; `None` if nothing is missing.
pub fn degraded(identity: &Identity, unreadable: &Unreadable) -> Option<String> {
    let rights = (!identity.sees_all).then(|| {
        let role = identity.role.replace('"', "\"\"");
        format!("what other roles do is hidden from the role {role}; as a superuser: GRANT pg_monitor TO \"{role}\";")
    });
    let pooled = identity.pooled.then(|| {
        "a pooler stands between: all looks are transactions, and what they find may be of any server behind it; connect \
         to the server itself"
            .to_owned()
    });
    let rows = unreadable.first.as_ref().map(|error| format!("{} rows could not be read: {error}", unreadable.count));
    let reasons: Vec<String> = rights.into_iter().chain(pooled).chain(rows).collect();
    Some(reasons.join("; ")).filter(|reasons| !reasons.is_empty())
}
