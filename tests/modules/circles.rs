//! Which files of a module import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::paths::File;
use crate::source::{Source, code, is_within, module, read};

/// Longer chains of re-exports than this aren't followed.
const MAX_REEXPORTS: usize = 8;

/// A file uses each file that defines what its paths name: `use` declarations (groups and aliases
/// included) and paths in the code, from `crate`, `self`, `super`, a child module or an imported name on.
/// A name that a module file imports or re-exports belongs to the file that defines it; a path that names
/// a module uses the file of that module. Between a file and its parent module, at any distance, nothing
/// counts: a parent declares and re-exports its children, and children use what their parent defines.
/// Test code doesn't count, nor do calls of methods, which name no file.
///
/// A circle is a set of files that use each other in both directions, directly or through others.
#[test]
fn sibling_files_import_in_one_direction() {
    let sources = read();
    let graph = Graph::new(&sources);
    let circles = graph.circles();
    let circles: Vec<_> = circles.iter().map(|files| graph.describe(files)).collect();
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

/// The files by their modules, and what they use.
struct Graph<'a> {
    files: BTreeMap<&'a str, File>,
}

impl<'a> Graph<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let named = sources.iter().filter(|(name, _)| name != "main");
        let files = named.map(|(name, code)| match name.as_str() {
            "lib" => ("", File::parse(code)),
            name => (module(name), File::parse(code)),
        });
        Self {
            files: files.collect(),
        }
    }

    /// The modules whose files a file uses, without its parents and children, and a name for which it
    /// uses each.
    fn used(&self, file: &str) -> BTreeMap<&str, String> {
        let paths = self.files[file].paths.iter();
        let used = paths.filter_map(|path| Some((self.owner(file, path, 0)?, path.join("::"))));
        used.filter(|(used, _)| {
            !is_within(used, file) && !is_within(file, used) && !used.is_empty()
        })
        .collect()
    }

    /// The module in whose file is what a path in a file stands for; nothing for other crates.
    fn owner(&self, file: &str, path: &[String], reexports: usize) -> Option<&str> {
        let mut at = file.to_owned();
        for (index, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => at.truncate(at.rfind('/').unwrap_or(0)),
                name => {
                    let child = format!("{at}/{name}");
                    let child = child.trim_start_matches('/');
                    if self.files.contains_key(child) {
                        child.clone_into(&mut at);
                    } else if let Some(target) = self.files.get(at.as_str())?.imports.get(name)
                        && reexports < MAX_REEXPORTS
                        && !(target == path && at == file)
                    {
                        let whole: Vec<_> =
                            target.iter().chain(&path[index + 1..]).cloned().collect();
                        return self.owner(&at, &whole, reexports + 1);
                    } else if index == 0 {
                        return None;
                    } else {
                        break;
                    }
                }
            }
        }
        self.files.get_key_value(at.as_str()).map(|(name, _)| *name)
    }

    fn circles(&self) -> Vec<Vec<&str>> {
        let reached: BTreeMap<_, _> = self
            .files
            .keys()
            .map(|file| (*file, self.reach(file)))
            .collect();
        let circle = |file: &&'a str| -> Vec<&str> {
            let back = |other: &&str| reached[*other].contains(*file);
            reached[*file].iter().copied().filter(back).collect()
        };
        let circles: BTreeSet<_> = self.files.keys().map(circle).collect();
        circles
            .into_iter()
            .filter(|circle| circle.len() > 1)
            .collect()
    }

    /// All that a file uses, directly or through others.
    fn reach(&self, file: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = self.used(file).into_keys().collect();
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(self.used(file).into_keys());
            }
        }
        reached
    }

    /// What the files of a circle use of each other.
    fn describe(&self, circle: &[&str]) -> String {
        let mut lines = vec![circle.join(" ")];
        for file in circle {
            let used = self.used(file).into_iter();
            let inside = used.filter(|(used, _)| circle.contains(used));
            lines.extend(inside.map(|(used, path)| format!("  {file} uses {used}: {path}")));
        }
        lines.join("\n")
    }
}

/// Files, then ` => ` and the circles that they make.
const EXAMPLES: &str = r"
m/a: use super::b::B; | m/b: use crate::m::a::A; => m/a m/b
m/a: fn f() { super::b::f() } | m/b: use crate::m::{a::{self as x, A}, c}; => m/a m/b
m/mod: mod a; pub use a::A; | m/a: use super::B; | m/mod: mod b; pub use b::B; =>
m/mod: pub use a::A; pub use b::B as C; | m/a: use super::C; | m/b: use super::A; => m/a m/b
m: mod a; fn f() { a::f() } | m/a: use super::f; =>
m/a: use super::b; fn f() { b::d::f() } | m/b/mod: | m/b/d: use crate::m::a::A; => m/a m/b/d
m/a: use super::b::B; | m/b: use super::c::C; | m/c: use super::a::A; => m/a m/b m/c
m/a: use super::b::B; | m/b: use super::c::C; | m/c: use b::A; fn f() { ::m::a::f() } =>
m/a: use super::b::B; | m/b: #[cfg(test)]\nuse super::a::A; // super::a::A =>
";

#[test]
fn circles_of_made_up_files_are_found() {
    for line in EXAMPLES.trim().lines() {
        let (files, expected) = line.split_once("=>").unwrap();
        let roots = ["lib:", "m/mod:"].into_iter();
        let sources: Vec<_> = roots
            .chain(files.split(" | "))
            .map(crate::made_up)
            .collect();
        let sources = code(&sources);
        let graph = Graph::new(&sources);
        let circles = graph.circles().into_iter().map(|files| files.join(" "));
        assert_eq!(
            circles.collect::<Vec<_>>().join(", "),
            expected.trim(),
            "{line}"
        );
    }
}
