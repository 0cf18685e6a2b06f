//! What is wrong with a configuration, all of it at once.

use std::io;
use std::path::PathBuf;

/// The largest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Problem {
    /// The file with the line, `config.yml:12`, or the environment variable that set the value.
    pub place: String,
    /// The line in the file, from 1, where it is known.
    pub(super) line: Option<usize>,
    /// A sentence: what is wrong and what would be right. Never shows a secret.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration file {} has more than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// One line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}
