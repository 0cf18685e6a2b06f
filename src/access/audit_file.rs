//! The file of the audit log, which programs that rotate logs may rename or remove: it is opened again
//! then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error_chain::on_one_line;

/// Only the owner and its group read who was refused what.
const MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    /// None after a failure.
    file: Option<File>,
    /// The failure is in the log.
    failed: bool,
}

impl AuditFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Some(append(path)?),
            failed: false,
        })
    }

    /// The file that has the path now.
    fn current(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) if is_at(&file, &self.path)? => file,
            Some(_) | None => append(&self.path)?,
        };
        Ok(self.file.insert(file))
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.current()?.write(bytes)
    }
}

impl Write for AuditFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.try_write(bytes);
        match &written {
            Ok(_) => self.failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let path = self.path.display();
                    tracing::error!(%path, error = %on_one_line(error), "the audit log can't be written");
                }
                self.file = None;
            }
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).open(path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
        let mut log = AuditFile::open(&path).unwrap();
        log.write_all(b"a\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.write_all(b"b\n").unwrap();
        fs::remove_file(&path).unwrap();
        log.write_all(b"c\n").unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"a\n");
        assert_eq!(fs::read(&path).unwrap(), b"c\n");
        // No file can be there; once it can, writing continues.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.write(b"d\n").is_err());
        fs::remove_dir(&path).unwrap();
        log.write_all(b"e\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"e\n");
    }
}
