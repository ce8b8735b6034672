//! The judge: libpq itself, in a process of its own that answers a line for each line (`tests/libpq_judge.py`).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use super::Outcome;
use crate::rig::postgres::cache;

/// libpq, ready to be asked; it ends when it is dropped.
pub(super) struct Judge {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Judge {
    pub(super) fn start() -> Self {
        let folder = cache().join("libpq");
        assert!(folder.exists(), "{} is missing: run tests/servers.sh", folder.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libpq_judge.py");
        let mut python = Command::new("/usr/bin/python3");
        // What libpq warns of goes to its stderr; the errors come as answers.
        python.arg("-B").arg(script).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = python.spawn().unwrap();
        let (questions, answers) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        let mut judge = Self { process, questions, answers };
        let version = judge.ask(&json!({"do": "version"}))["version"].as_u64().unwrap();
        assert!(version >= 170_000, "libpq {version} is too old to judge");
        judge
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.questions.as_mut().unwrap(), "{question}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("the judge said {answer:?} to {question}: {error}"))
    }

    /// How a connection ends, and what one row of SQL brings if it is made.
    pub(super) fn connect(&mut self, text: &str, environment: &BTreeMap<String, String>, sql: &str) -> Outcome {
        let answer = self.ask(&json!({"do": "connect", "text": text, "env": environment, "sql": sql}));
        match answer["row"].as_array() {
            Some(row) => Ok(row[0].as_str().unwrap().to_owned()),
            None => Err(answer["error"].as_str().unwrap().trim_end().replace('\n', " | ")),
        }
    }

    /// Keywords and values of each string; `None` for those that libpq refuses.
    pub(super) fn parse(&mut self, texts: &[String]) -> Vec<Option<BTreeMap<String, String>>> {
        let answer = self.ask(&json!({"do": "parse", "texts": texts}));
        serde_json::from_value(answer["parsed"].clone()).unwrap()
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // At the end of its input it ends.
        self.questions = None;
        let _status = self.process.wait();
    }
}
