//! Fingerprints: whether a secret is still the same, for those who may not remember it.

use std::{
    fmt,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::Read,
    path::Path,
    sync::LazyLock,
};

/// What tells one secret from another without telling it: the same for the same bytes in one process, and of no use in any
/// other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEYS.hash_one(bytes))
    }

    /// Of what a file holds; `None` if it cannot be read.
    pub fn of_file(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        // Far more than secrets and certificates have; of an endless file the beginning will do.
        File::open(path).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes)).ok()?;
        Some(Self::of(&bytes))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_tells_one_secret_from_another_and_nothing_of_either() {
        let [one, other] = ["hunter2", "hunter3"].map(|secret| Fingerprint::of(secret.as_bytes()));
        assert!(one == Fingerprint::of(b"hunter2") && one != other);
        assert_eq!(format!("{one:?}"), "***");
        assert_eq!(Fingerprint::of_file(Path::new("/no/such/file")), None);
    }
}
