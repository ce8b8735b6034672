//! How large the program is, and whose code the largest parts of it are.

use std::{collections::BTreeMap, process::Command};

use crate::{
    parts::lone,
    rig::{Folder, agent::binary, must},
    table::{Bound, Figure},
};

const MIB: f64 = 1024.0 * 1024.0;
/// So many parts are told.
const PARTS: usize = 10;

pub(crate) fn size(_rounds: usize) -> Vec<Figure> {
    let folder = Folder::new("size");
    let stripped = folder.path().join("stripped");
    must(Command::new("strip").arg("-o").arg(&stripped).arg(binary()));
    let bytes = stripped.metadata().unwrap().len() as f64;
    let mut figures = vec![lone("size", "binary, stripped", "MiB", vec![bytes / MIB], Bound::Told)];
    let mut parts: Vec<(String, u64)> = by_crate().into_iter().collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    figures.extend(
        parts
            .into_iter()
            .take(PARTS)
            .map(|(name, bytes)| lone("size", &format!("of it {name}"), "MiB", vec![bytes as f64 / MIB], Bound::Told)),
    );
    figures
}

/// Bytes of functions and data by the crate that their name begins with.
fn by_crate() -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for line in must(Command::new("nm").args(["--demangle", "--print-size"]).arg(binary())).lines() {
        let mut words = line.splitn(4, ' ').skip(1);
        let (Some(size), Some(_kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(size) = u64::from_str_radix(size, 16) else { continue };
        let name = name.trim_start_matches(|letter: char| !letter.is_alphanumeric());
        // What C wrote has no crate; `dyn a::B` and `&mut a::B` have one behind a word.
        let of = name.split_once("::").map_or("C", |(path, _)| path.rsplit([' ', '&', '<']).next().unwrap_or(path));
        *sizes.entry(of.to_owned()).or_default() += size;
    }
    sizes
}
