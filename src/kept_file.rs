//! Small JSON files that the program keeps over restarts. All of this blocks.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes of a file. None where there is no such file. The error is of the kind `FileTooLarge` where it has
/// more than `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut text)?;
    if text.len() as u64 > max {
        let reason = format!("more than {max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(Some(text))
}

/// The value in a file of at most `max` bytes, or its default where there is no such file.
pub fn read_or_default<T: DeserializeOwned + Default>(path: &Path, max: u64) -> io::Result<T> {
    match read(path, max)? {
        Some(text) => Ok(serde_json::from_slice(&text)?),
        None => Ok(T::default()),
    }
}

/// Replaces a file: after a crash, it has the old value or the new one. One caller at a time: two would write
/// the same draft.
pub fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    let draft = path.with_extension("json.new");
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)?;
    let mut file = File::create(&draft)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_read_up_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own/numbers.json");
        assert_eq!(read(&path, 9).unwrap(), None);
        assert_eq!(
            read_or_default::<Vec<u8>>(&path, 9).unwrap(),
            Vec::<u8>::new()
        );
        for numbers in [vec![1, 2], vec![3]] {
            replace(&path, &numbers).unwrap();
            assert_eq!(read_or_default::<Vec<u8>>(&path, 99).unwrap(), numbers);
        }
        let length = fs::metadata(&path).unwrap().len();
        assert!(read(&path, length).unwrap().is_some());
        let error = read(&path, length - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, "[3").unwrap();
        let error = read_or_default::<Vec<u8>>(&path, 99).unwrap_err();
        assert!(
            !matches!(error.kind(), io::ErrorKind::NotFound),
            "broken isn't missing"
        );
        let names = fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "no draft is left");
    }
}
