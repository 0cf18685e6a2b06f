//! The sources of the library, without what isn't code of the program.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file: its path below `src`, without `.rs`, and its text.
pub(crate) type Source = (String, String);

/// The program's own code.
pub(crate) fn read() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut directories = vec![PathBuf::from(&root)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().with_extension("");
                let name = name.to_str().unwrap().replace('\\', "/");
                sources.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(sources.len() > 40, "the sources were not found");
    code(&sources)
}

/// The sources without comments, texts in quotes, and test code.
pub(crate) fn code(sources: &[Source]) -> Vec<Source> {
    let stripped = sources.iter().map(|(name, text)| (name, strip(text)));
    let stripped: Vec<_> = stripped.collect();
    let tests = stripped
        .iter()
        .flat_map(|(name, text)| test_modules(name, text));
    let tests: Vec<String> = tests.collect();
    stripped
        .iter()
        .filter(|(name, _)| !tests.iter().any(|module| is_within(name, module)))
        .map(|(name, text)| ((*name).clone(), without_tests(text)))
        .collect()
}

/// The module that a file is: `cache/index` for `cache/index/mod` and for `cache/index`.
pub(crate) fn module(name: &str) -> &str {
    name.strip_suffix("/mod").unwrap_or(name)
}

/// Whether a file is the module, or below it.
pub(crate) fn is_within(name: &str, module: &str) -> bool {
    let rest = name.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The text without comments, and without what is in quotes.
fn strip(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut previous = ' ';
        for (at, c) in line.char_indices() {
            if !quoted && line[at..].starts_with("//") {
                break;
            }
            // Neither '"' nor \" opens or closes anything.
            if c == '"' && previous != '\\' && !line[at..].starts_with("\"'") {
                quoted = !quoted;
            } else if !quoted {
                code.push(c);
            }
            previous = c;
        }
        code.push('\n');
    }
    code
}

/// `#[cfg(test)] mod x;`, with a path or not: the modules that are test code.
fn test_modules(name: &str, code: &str) -> Vec<String> {
    let directory = module(name);
    let mut modules = vec![format!("{directory}/tests")];
    for after in code.split("#[cfg(test)]").skip(1) {
        let declared = after.split([';', '{']).next().unwrap();
        if let Some(module) = declared
            .split_whitespace()
            .skip_while(|word| *word != "mod")
            .nth(1)
            && after[declared.len()..].starts_with(';')
        {
            modules.push(format!("{directory}/{module}"));
        }
    }
    modules
}

/// The code without modules, functions and imports that are marked as test code.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, marked)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let mut depth = 0_usize;
        let end = marked.char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, '}' | ';')
        });
        rest = end.map_or("", |(at, c)| &marked[at + c.len_utf8()..]);
    }
    kept + rest
}
