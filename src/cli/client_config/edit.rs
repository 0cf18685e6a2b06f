//! What a client's configuration consists of: files, and how each is changed.

use std::path::{Path, PathBuf};

/// Why the content of a file can't be changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    /// Counted from 1, where the format tells it.
    line: Option<usize>,
    text: String,
}

impl Refused {
    pub(super) fn at(line: Option<usize>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { line, text }
    }

    /// The error with the file that it is about: `FILE:LINE: text`.
    pub(super) fn in_file(&self, path: &Path) -> anyhow::Error {
        let path = path.display();
        match self.line {
            Some(line) => anyhow::anyhow!("{path}:{line}: {self}"),
            None => anyhow::anyhow!("{path}: {self}"),
        }
    }
}

/// The line, counted from 1, of a byte offset.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    before.filter(|byte| *byte == b'\n').count() + 1
}

/// A change of one file's content. What it doesn't know, it leaves as it is.
pub(super) trait Edit {
    /// The content with the mirror's entries; `text` is empty for a file that doesn't exist. Returns a
    /// content that has them unchanged.
    fn apply(&self, text: &str) -> Result<String, Refused>;

    /// The content without the mirror's entries: empty if nothing else is in it. `original` is the
    /// content before they were added, if a backup has it.
    fn revert(&self, text: &str, original: Option<&str>) -> Result<String, Refused>;

    /// Whether `apply` can't keep the comments of a file that it changes.
    fn loses_comments(&self) -> bool {
        false
    }
}

/// A file, and its change.
pub(super) struct FileEdit {
    path: PathBuf,
    edit: Box<dyn Edit>,
    copied_from: Option<PathBuf>,
    is_secret: bool,
}

impl FileEdit {
    /// `path` is absolute: where the client looks for the file.
    pub(super) fn new(path: impl Into<PathBuf>, edit: impl Edit + 'static) -> Self {
        Self {
            path: path.into(),
            edit: Box::new(edit),
            copied_from: None,
            is_secret: false,
        }
    }

    /// A copy of a file of the operator's.
    pub(super) fn copy(path: PathBuf, pem: &Pem, is_secret: bool) -> Self {
        Self {
            copied_from: Some(pem.path.clone()),
            is_secret,
            ..Self::new(path, Copy(pem.text.clone()))
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn edit(&self) -> &dyn Edit {
        self.edit.as_ref()
    }

    /// The operator's file that it is a copy of.
    pub(super) fn copied_from(&self) -> Option<&Path> {
        self.copied_from.as_deref()
    }

    /// Whether only its owner may read it.
    pub(super) fn is_secret(&self) -> bool {
        self.is_secret
    }
}

/// A file of a certificate or a key, which was read.
#[derive(Debug, Clone)]
pub(super) struct Pem {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

struct Copy(String);

impl Edit for Copy {
    fn apply(&self, _: &str) -> Result<String, Refused> {
        Ok(self.0.clone())
    }

    fn revert(&self, text: &str, _: Option<&str>) -> Result<String, Refused> {
        let is_ours = text == self.0;
        Ok(if is_ours {
            String::new()
        } else {
            text.to_owned()
        })
    }
}

/// All files of a client, and what the operator has to do after they have changed.
pub(super) struct Plan {
    pub(super) files: Vec<FileEdit>,
    pub(super) next: Vec<String>,
}
