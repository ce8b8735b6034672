//! A source as tokens: its paths, names, functions and texts, each with its line.

use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One file.
pub(super) struct Source {
    /// From `src/`, such as `cli/mod.rs`.
    pub(super) path: String,
    pub(super) text: String,
    /// Outside of tests: `crate::units::Time`, one for each leaf of a `use`.
    pub(super) paths: Vec<(usize, Vec<String>)>,
    /// Outside of tests: what stands in string literals, doc comments excepted.
    pub(super) literals: Vec<(usize, String)>,
    /// Types, functions and modules.
    pub(super) names: Vec<(usize, String)>,
    /// Functions: where they begin, what they are called, how many lines of code they have.
    pub(super) functions: Vec<(usize, String, usize)>,
    /// Modules that have a file of their own.
    pub(super) files: Vec<String>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let mut source = Self {
            path: path.into(),
            text: text.into(),
            paths: Vec::new(),
            literals: Vec::new(),
            names: Vec::new(),
            functions: Vec::new(),
            files: Vec::new(),
        };
        if is_rust(path) {
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
            // Tests that are too long for their module's own file lie beside it.
            source.read(tokens, path.ends_with("/tests.rs"));
        }
        source
    }

    /// Where the file stands in the tree of modules: `cli/config.rs` and `cli/config/mod.rs` at `["cli", "config"]`.
    pub(super) fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let mut module: Vec<_> = path.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) && path != "main" {
            module.pop();
        }
        module
    }

    /// A path from the crate's root, if it is one of the crate's own.
    pub(super) fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let rest = |skip: usize| path.iter().skip(skip).cloned();
        match path.first()?.as_str() {
            "crate" | "postgres_agent" => Some(rest(1).collect()),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let mut module = self.module();
                module.truncate(module.len().checked_sub(ups)?);
                Some(module.into_iter().chain(rest(ups)).collect())
            }
            _ => None,
        }
    }

    fn read(&mut self, tokens: TokenStream, test: bool) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut test_next = false;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                // An attribute: of what follows it, only whether that is a test matters.
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    let inner = matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == '!');
                    at += usize::from(inner);
                    if let Some(TokenTree::Group(group)) = tokens.get(at) {
                        test_next |= group.stream().to_string().replace(' ', "") == "cfg(test)";
                        at += 1;
                    }
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    self.declared(&tokens[at - 1..], line, test || test_next);
                    if !test && !test_next {
                        at = self.path_at(&tokens, at - 1, &[]);
                    }
                }
                TokenTree::Literal(literal) if !test && !test_next => {
                    let written = literal.to_string();
                    if let Some(text) = written.trim_start_matches(['r', 'b', '#']).strip_prefix('"') {
                        self.literals.push((literal.span().start().line, text.to_owned()));
                    }
                }
                TokenTree::Group(group) => {
                    self.read(group.stream(), test || test_next);
                    test_next &= group.delimiter() != Delimiter::Brace;
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => test_next = false,
                _ => {}
            }
        }
    }

    /// Takes note of what `fn`, `mod` and their like declare.
    fn declared(&mut self, tokens: &[TokenTree], line: usize, test: bool) {
        let (TokenTree::Ident(kind), Some(TokenTree::Ident(name))) = (&tokens[0], tokens.get(1)) else { return };
        let (kind, name) = (kind.to_string(), name.to_string());
        match kind.as_str() {
            "fn" => {
                let ends = |token: &&TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(punct) => punct.as_char() == ';',
                    _ => false,
                };
                if let Some(TokenTree::Group(body)) = tokens.iter().find(ends) {
                    let lines = self.text.lines().skip(line - 1).take(body.span_close().end().line + 1 - line);
                    let code = lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
                    self.functions.push((line, name.clone(), code.count()));
                }
            }
            "mod" if matches!(tokens.get(2), Some(TokenTree::Punct(_))) => self.files.push(name.clone()),
            "mod" | "struct" | "enum" | "trait" => {}
            _ => return,
        }
        if !test {
            self.names.push((line, name));
        }
    }

    /// Reads a path, or all paths of a group of a `use`; gives the place behind it.
    fn path_at(&mut self, tokens: &[TokenTree], mut at: usize, outer: &[String]) -> usize {
        let mut path = outer.to_vec();
        let line = tokens[at].span().start().line;
        let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            path.push(ident.to_string());
            at += 1;
            if !(colon(at) && colon(at + 1)) {
                break;
            }
            at += 2;
            if let Some(TokenTree::Group(group)) = tokens.get(at)
                && group.delimiter() == Delimiter::Brace
            {
                let inner: Vec<_> = group.stream().into_iter().collect();
                let mut next = 0;
                while next < inner.len() {
                    next = if matches!(inner[next], TokenTree::Ident(_)) {
                        self.path_at(&inner, next, &path)
                    } else {
                        next + 1
                    };
                }
                return at + 1;
            }
        }
        self.paths.push((line, path));
        at
    }
}

pub(super) fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
}
