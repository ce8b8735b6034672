//! Values: the kinds of thing that a key can hold, and how each is written in TOML and in a variable.
//!
//! A variable's text is not TOML: `0.5s` stands there without quotes. Only arrays and tables are written as in TOML.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{Choice, Size, Value, quoted};
use crate::units;

impl<T: Choice> Value for T {
    fn allowed() -> String {
        let words: Vec<String> = T::CHOICES.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("one of {}", words.join(", "))
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        T::CHOICES.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }
    fn show(&self) -> String {
        let word = T::CHOICES.iter().find(|(_, value)| value == self).map_or("", |(word, _)| word);
        format!("\"{word}\"")
    }
}

impl Value for bool {
    fn allowed() -> String {
        "true or false".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u64 {
    fn allowed() -> String {
        "a whole number from 0 up".into()
    }
    fn noun() -> String {
        "a whole number".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_integer().and_then(|number| number.try_into().ok())
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for f64 {
    fn allowed() -> String {
        "a number".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_float().or_else(|| value.as_integer().map(|number| number as f64)).filter(|number| number.is_finite())
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn allowed() -> String {
        "a text".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        // A JSON string is a TOML basic string but for DEL, and never spans lines as toml's own writer may choose to.
        serde_json::Value::from(self.as_str()).to_string().replace('\u{7f}', "\\u007f")
    }
}

impl Value for PathBuf {
    fn allowed() -> String {
        "a path".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(text).filter(|text| !text.is_empty()).map(Self::from)
    }
    fn show(&self) -> String {
        self.display().to_string().show()
    }
}

impl Value for Duration {
    fn allowed() -> String {
        "a duration such as \"250ms\", \"10s\" or \"7d\"".into()
    }
    fn noun() -> String {
        "a duration".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        units::parse_duration(text).ok()
    }
    fn show(&self) -> String {
        units::duration(*self).show()
    }
}

impl Value for Size {
    fn allowed() -> String {
        "a size such as \"16MiB\" or \"0\"".into()
    }
    fn noun() -> String {
        "a size".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        units::parse_size(text).ok().map(Self)
    }
    fn show(&self) -> String {
        units::size(self.0).show()
    }
}

impl<T: Value> Value for Vec<T> {
    const SECRET: bool = T::SECRET;
    fn allowed() -> String {
        format!("an array, each item {}", T::allowed())
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_toml).collect()
    }
    fn from_text(text: &str) -> Option<Self> {
        Self::from_toml(in_toml(text)?.get("v")?)
    }
    fn show(&self) -> String {
        array(self.iter().map(Value::show))
    }
    fn write(&self) -> String {
        array(self.iter().map(Value::write))
    }
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// A variable's text as the value `v` of a line of TOML.
fn in_toml(text: &str) -> Option<toml::Table> {
    format!("v = {text}").parse().ok()
}

impl Value for BTreeMap<String, String> {
    fn allowed() -> String {
        "a table of texts".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        let pair = |(key, value): (&String, &toml::Value)| Some((key.clone(), value.as_str()?.to_owned()));
        value.as_table()?.iter().map(pair).collect()
    }
    fn from_text(text: &str) -> Option<Self> {
        Self::from_toml(in_toml(text)?.get("v")?)
    }
    fn show(&self) -> String {
        let items: Vec<String> =
            self.iter().map(|(key, value)| format!("{} = {}", quoted(key), value.show())).collect();
        if items.is_empty() { "{}".into() } else { format!("{{ {} }}", items.join(", ")) }
    }
}
