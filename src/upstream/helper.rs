//! Runs a credential helper: `docker-credential-NAME get` with the server's name on its standard
//! input, which writes `{"ServerURL": ..., "Username": ..., "Secret": ...}`
//! (docker-credential-helpers).
//!
//! A helper runs at most [`DEADLINE`], then it is killed with all processes of its group; so it is when
//! nobody waits for it any more. Its output is bounded. No error shows its standard output, and what an
//! error shows of its standard error is short and without the secret.

use std::collections::HashMap;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::account::{LoginError, Secret};

/// The longest time for which a helper runs.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// The most bytes of its output.
const MAX_OUTPUT: usize = 64 * 1024;
/// The bytes of its standard error that are looked at; the rest is discarded.
const MAX_ERRORS: usize = 4096;
/// The characters of its standard error that an error shows.
const MAX_SHOWN: usize = 200;
/// What helpers write, and fail, when they know no credentials for a server.
const NOT_FOUND: &str = "credentials not found";
/// What stands for the secret in what is shown.
const HIDDEN: &str = "<hidden>";

/// Why a helper gave no credentials.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperError {
    #[error("it can't be run: {0}")]
    Start(Arc<io::Error>),
    #[error("its output can't be read: {0}")]
    Output(Arc<io::Error>),
    #[error("it took longer than {0:?} and was killed")]
    Deadline(Duration),
    #[error("it wrote more than {MAX_OUTPUT} bytes and was killed")]
    TooLong,
    #[error("it ended with {status}{}", in_parentheses(said))]
    Failed { status: ExitStatus, said: String },
    #[error("it has no credentials for this server")]
    NotFound,
    #[error("its output is not the JSON of credentials{}", in_parentheses(.0))]
    Garbage(String),
    #[error("its credentials can't be used: {0}")]
    Login(LoginError),
}

fn in_parentheses(said: &str) -> String {
    if said.is_empty() {
        return String::new();
    }
    format!(" (standard error: {said})")
}

/// What a helper writes.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: SecretString,
}

/// One at a time of each helper and server, whoever asks: helpers write files of their own. There are
/// as many as the configuration and its Docker files name.
static RUNNING: LazyLock<Mutex<HashMap<Asked, Arc<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// A helper's program, and the server that it is asked for.
type Asked = (String, String);

/// Asks a helper for the credentials for a server.
pub(super) async fn get(command: &str, server: &str) -> Result<Secret, HelperError> {
    let key = (command.to_owned(), server.to_owned());
    let running = Arc::clone(RUNNING.lock().entry(key).or_default());
    let _alone = running.lock().await;
    // On the heap: requests that need no helper have no room for it.
    let result = timeout(DEADLINE, Box::pin(run(command, server))).await;
    result.unwrap_or(Err(HelperError::Deadline(DEADLINE)))
}

async fn run(command: &str, server: &str) -> Result<Secret, HelperError> {
    let mut helper = Running::start(command).await?;
    let child = &mut helper.child;
    let input = child.stdin.take();
    // A helper that needs no name may end without reading it.
    let ask = async {
        if let Some(mut input) = input {
            drop(input.write_all(server.as_bytes()).await);
        }
        Ok(())
    };
    let answer = read(child.stdout.take(), MAX_OUTPUT, true);
    let errors = read(child.stderr.take(), MAX_ERRORS, false);
    let ((), answer, errors) = tokio::try_join!(ask, answer, errors)?;
    let status = helper.wait().await?;
    judge(status, &answer, &errors)
}

/// What a helper's output means.
fn judge(status: ExitStatus, output: &[u8], errors: &[u8]) -> Result<Secret, HelperError> {
    if !status.success() {
        let text = String::from_utf8_lossy(output);
        if text.to_ascii_lowercase().contains(NOT_FOUND) {
            return Err(HelperError::NotFound);
        }
        let said = excerpt(errors, &text);
        return Err(HelperError::Failed { status, said });
    }
    let answer: Answer = serde_json::from_slice(output).map_err(|_private| {
        HelperError::Garbage(excerpt(errors, &String::from_utf8_lossy(output)))
    })?;
    Secret::of_helper(&answer.username, answer.secret.expose_secret()).map_err(HelperError::Login)
}

/// One line of the standard error, without any word of the output that may be the secret.
fn excerpt(errors: &[u8], output: &str) -> String {
    let text = String::from_utf8_lossy(errors);
    let is_of_secrets = |c: char| c.is_alphanumeric() || "+/=_.-~".contains(c);
    let mut line = String::new();
    for word in text.split_whitespace() {
        let words = word.split(|c| !is_of_secrets(c));
        let is_secret = words
            .filter(|part| part.len() > 3)
            .any(|part| output.contains(part));
        let separator = if line.is_empty() { "" } else { " " };
        line.push_str(separator);
        line.push_str(if is_secret { HIDDEN } else { word });
        if line.chars().count() >= MAX_SHOWN {
            break;
        }
    }
    line.chars()
        .filter(|c| !c.is_control())
        .take(MAX_SHOWN)
        .collect()
}

/// Reads to the end: at most `limit` bytes, and more is an error or is discarded.
async fn read(
    from: Option<impl AsyncRead + Unpin>,
    limit: usize,
    is_strict: bool,
) -> Result<Vec<u8>, HelperError> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else {
        return Ok(bytes);
    };
    let mut buffer = [0; 4096];
    loop {
        let length = from.read(&mut buffer).await;
        let length = length.map_err(|error| HelperError::Output(error.into()))?;
        let read = buffer.get(..length).unwrap_or_default();
        if read.is_empty() {
            return Ok(bytes);
        }
        let room = limit.saturating_sub(bytes.len());
        if is_strict && read.len() > room {
            return Err(HelperError::TooLong);
        }
        bytes.extend(read.iter().take(room));
    }
}

/// A running helper; it ends with all processes of its group when this is dropped.
struct Running {
    child: Child,
    is_running: bool,
}

impl Running {
    /// Starts it on the blocking pool: that takes longer than a task may hold its thread.
    async fn start(command: &str) -> Result<Self, HelperError> {
        let mut command = Command::new(command);
        command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let start = move || {
            let child = command.spawn()?;
            Ok(Self {
                child,
                is_running: true,
            })
        };
        let started = tokio::task::spawn_blocking(start).await;
        let started = started.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        started.map_err(|error| HelperError::Start(error.into()))
    }

    async fn wait(&mut self) -> Result<ExitStatus, HelperError> {
        let status = self.child.wait().await;
        self.is_running = false;
        status.map_err(|error| HelperError::Output(error.into()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(id) = self.child.id().filter(|_| self.is_running)
            && let Some(group) = i32::try_from(id)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
        {
            let killed = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            // It may have ended just now.
            killed.unwrap_or_default();
        }
    }
}

#[cfg(test)]
#[path = "tests/helper.rs"]
mod tests;
