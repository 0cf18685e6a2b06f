//! The file system that a client's configuration is in: below a directory that stands for its root.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::edit::{FileEdit, Plan};
use super::transaction::Transaction;
use super::yaml;

/// The largest file that is changed, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The end of the name of a backup; of further ones, a point and their number follow.
const BACKUP: &str = ".millpond-backup";
/// The most backups of a file. The last one is replaced when there are as many.
const MAX_BACKUPS: usize = 9;

/// A directory that stands for the root of the client's file system, or nothing, in which no file exists.
pub(super) struct Root(Option<PathBuf>);

/// What an entry of a directory is, or what its symbolic link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
}

impl Root {
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let real = dir.canonicalize();
        let real = real.with_context(|| format!("--write {}", dir.display()))?;
        ensure!(real.is_dir(), "--write {}: no directory", dir.display());
        Ok(Self(Some(real)))
    }

    /// A path of the client's as messages name it.
    pub(super) fn named(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        self.0
            .as_ref()
            .map_or(path.to_owned(), |root| root.join(relative))
    }

    /// Where a path of the client's really is, through symbolic links, which mustn't leave the root.
    fn resolve(&self, path: &Path) -> anyhow::Result<Option<PathBuf>> {
        let Some(root) = &self.0 else {
            return Ok(None);
        };
        let named = self.named(path);
        let mut existing = named.as_path();
        loop {
            match existing.symlink_metadata() {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| named.display().to_string()),
            }
            existing = existing.parent().unwrap_or(root);
        }
        let real = existing.canonicalize().with_context(|| {
            let existing = existing.display();
            format!("{existing}: the symbolic link can't be followed")
        })?;
        ensure!(
            real.starts_with(root),
            "{}: the symbolic link leads out of {}",
            existing.display(),
            root.display()
        );
        let missing = named.strip_prefix(existing).unwrap_or(Path::new(""));
        // `join` would add a slash for an empty path.
        let is_whole = missing.as_os_str().is_empty();
        Ok(Some(if is_whole { real } else { real.join(missing) }))
    }

    /// The text of a file; none if there is no such file.
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<Option<String>> {
        match self.resolve(path)? {
            Some(real) => read(&real),
            None => Ok(None),
        }
    }

    /// The sorted names of one kind in a directory, which are none if it doesn't exist.
    pub(super) fn list(&self, dir: &Path, kind: Kind) -> anyhow::Result<Vec<String>> {
        let Some(real) = self.resolve(dir)? else {
            return Ok(Vec::new());
        };
        let entries = match fs::read_dir(&real) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| real.display().to_string()),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| real.display().to_string())?;
            if entry.path().is_dir() == (kind == Kind::Directory) {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes all changes of a plan, or none if one of them can't be prepared; returns what was done.
    pub(super) fn write(&self, plan: &Plan) -> anyhow::Result<Report> {
        self.change(plan, written)
    }

    /// Takes back what [`Self::write`] has done.
    pub(super) fn undo(&self, plan: &Plan) -> anyhow::Result<Report> {
        self.change(plan, undone)
    }

    fn change(
        &self,
        plan: &Plan,
        change: impl Fn(&Current<'_>, &mut Transaction) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<Report> {
        let mut transaction = Transaction::default();
        let mut lines = Vec::new();
        for file in &plan.files {
            let Some(real) = self.resolve(file.path())? else {
                bail!("no directory to write to");
            };
            let current = Current {
                text: read(&real)?,
                backups: backups_of(&real)?,
                real,
                file,
            };
            lines.extend(change(&current, &mut transaction)?);
        }
        transaction.commit()?;
        Ok(Report { lines })
    }
}

/// What was done to each file that was changed.
pub(super) struct Report {
    pub(super) lines: Vec<String>,
}

/// The path of a backup; numbers begin with 1.
fn backup_path(real: &Path, number: usize) -> PathBuf {
    let mut name = real.as_os_str().to_owned();
    name.push(BACKUP);
    if number > 1 {
        name.push(format!(".{number}"));
    }
    PathBuf::from(name)
}

/// The backups that exist, oldest first.
fn backups_of(real: &Path) -> anyhow::Result<Vec<Backup>> {
    let mut backups = Vec::new();
    for number in 1..=MAX_BACKUPS {
        let path = backup_path(real, number);
        if let Some(text) = read(&path)? {
            backups.push(Backup { number, path, text });
        }
    }
    Ok(backups)
}

fn read(real: &Path) -> anyhow::Result<Option<String>> {
    let named = || real.display().to_string();
    let file = match fs::File::open(real) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(named),
    };
    let is_file = file.metadata().with_context(named)?.is_file();
    ensure!(is_file, "{}: not a regular file", real.display());
    let mut bytes = Vec::new();
    let length = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    let length = length.with_context(named)?;
    ensure!(
        length as u64 <= MAX_FILE,
        "{}: larger than {MAX_FILE} bytes",
        real.display()
    );
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = { error.as_bytes().iter().take(valid) }
                .filter(|byte| **byte == b'\n')
                .count();
            bail!("{}:{}: not UTF-8", real.display(), line + 1)
        }
    }
}

/// What a file was before a change.
struct Backup {
    number: usize,
    path: PathBuf,
    text: String,
}

/// A file, as it is before it is changed.
struct Current<'a> {
    file: &'a FileEdit,
    real: PathBuf,
    text: Option<String>,
    backups: Vec<Backup>,
}

impl Current<'_> {
    fn apply(&self, text: &str) -> anyhow::Result<String> {
        let applied = self.file.edit().apply(text);
        applied.map_err(|refused| refused.in_file(&self.real))
    }

    fn revert(&self, text: &str, original: Option<&str>) -> anyhow::Result<String> {
        let reverted = self.file.edit().revert(text, original);
        reverted.map_err(|refused| refused.in_file(&self.real))
    }

    /// Whether the file is what the change would make of this text.
    fn came_from(&self, text: &str) -> bool {
        let applied = self.file.edit().apply(text).ok();
        applied.is_some() && applied == self.text
    }

    /// The last backup without the mirror's entries. Others are of a file that had them already.
    fn original(&self) -> Option<&Backup> {
        let is_without = |backup: &&Backup| self.has_entries(&backup.text).is_ok_and(|has| !has);
        self.backups.iter().rev().find(is_without)
    }

    /// Whether something would have to be removed from a text.
    fn has_entries(&self, text: &str) -> anyhow::Result<bool> {
        Ok(!text.trim().is_empty() && self.revert(text, None)? != text)
    }

    /// Whether a change of this text would lose something that no backup has.
    fn needs_backup(&self, text: &str) -> anyhow::Result<bool> {
        if self.file.copied_from().is_some() {
            return Ok(self.backups.is_empty());
        }
        if self.backups.iter().any(|backup| backup.text == text) {
            return Ok(false);
        }
        // The entries alone are made again from the backup before them.
        Ok(self.backups.is_empty() || self.loses_comments(text) || !self.has_entries(text)?)
    }

    fn loses_comments(&self, text: &str) -> bool {
        self.file.edit().loses_comments() && yaml::has_comments(text)
    }

    fn next_backup(&self) -> PathBuf {
        let last = self.backups.last().map_or(0, |backup| backup.number);
        backup_path(&self.real, (last + 1).min(MAX_BACKUPS))
    }
}

/// Prepares a file with the mirror's entries.
fn written(current: &Current<'_>, transaction: &mut Transaction) -> anyhow::Result<Option<String>> {
    let old = current.text.as_deref();
    let new = current.apply(old.unwrap_or_default())?;
    if old == Some(&new) || (old.is_none() && new.is_empty()) {
        return Ok(None);
    }
    let real = current.real.display();
    let mut line = format!("wrote {real}");
    if let Some(old) = old {
        let mut backup = current.backups.last().map(|backup| backup.path.clone());
        if current.needs_backup(old)? {
            let path = current.next_backup();
            transaction.write(&path, old, Some(&current.real), false)?;
            backup = Some(path);
        }
        if let Some(backup) = backup {
            line = format!("{line}, backup in {}", backup.display());
        }
        if current.loses_comments(old) {
            line = format!("{line}, which has the comments; the new file has none");
        }
    }
    let owner = old.map(|_| current.real.as_path());
    transaction.write(&current.real, &new, owner, current.file.is_secret())?;
    Ok(Some(line))
}

/// Prepares a file without the mirror's entries.
fn undone(current: &Current<'_>, transaction: &mut Transaction) -> anyhow::Result<Option<String>> {
    let Some(text) = &current.text else {
        return Ok(None);
    };
    let real = current.real.display();
    let original = current.original();
    if let Some(Backup {
        path: backup,
        text: original,
        ..
    }) = original
        && original != text
        && current.came_from(original)
    {
        transaction.write(&current.real, original, Some(backup), false)?;
        transaction.remove(backup);
        return Ok(Some(format!("restored {real} from its backup")));
    }
    let before = original.map(|original| original.text.as_str());
    let reverted = current.revert(text, before)?;
    // A file that has nothing but the entries was made with them, whatever an older backup says.
    let is_new = current.came_from("");
    if is_new || (original.is_none() && reverted.is_empty() && !text.is_empty()) {
        transaction.remove(&current.real);
        return Ok(Some(format!("removed {real}")));
    }
    if reverted == *text {
        return Ok(None);
    }
    transaction.write(&current.real, &reverted, Some(&current.real), false)?;
    let mut line = format!("removed the mirror's entries from {real}, which has other changes");
    if let Some(Backup { path, .. }) = original {
        line = format!("{line}; the backup {} is still there", path.display());
    }
    Ok(Some(line))
}
