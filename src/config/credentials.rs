//! Where the credentials for an upstream come from: keys of an upstream's section, and of each item
//! of its `credentials`.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::section::Section;
use crate::oci::Pattern;

/// What stands for a secret in print.
pub(super) const HIDDEN: &str = "<hidden>";
/// What an item without a source of credentials lacks.
const SOURCES: &str =
    "it and `password`, or `usernamefile` and `passwordfile`, `dockerconfig` or `exec`";
/// Further accounts of one upstream.
const MAX_ACCOUNTS: usize = 16;
/// The longest name of a helper's program, in bytes.
const MAX_COMMAND: usize = 4096;

/// The source of the credentials of an account. They go to the upstream's own origin and to a token
/// service that belongs to it or that the operator named, and to nobody else.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A user name, without a colon, which separates it from the password (RFC 7617); a password.
    Fixed {
        username: String,
        password: SecretString,
    },
    /// At least one of the two is in a file, which may change.
    Files {
        username: Written,
        password: Written,
    },
    /// A `config.json` of Docker or an `auth.json` of containers, which may change.
    DockerConfig(PathBuf),
    /// A program that speaks the protocol of Docker's credential helpers.
    Helper(Helper),
}

/// A value, or the file that holds it.
#[derive(Debug, Clone)]
pub enum Written {
    Text(SecretString),
    File(PathBuf),
}

/// Secrets are compared as they are: both come from the operator's configuration.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Fixed { username, password },
                Self::Fixed {
                    username: other_name,
                    password: other_password,
                },
            ) => {
                username == other_name && password.expose_secret() == other_password.expose_secret()
            }
            (
                Self::Files { username, password },
                Self::Files {
                    username: other_name,
                    password: other_password,
                },
            ) => username == other_name && password == other_password,
            (Self::DockerConfig(path), Self::DockerConfig(other)) => path == other,
            (Self::Helper(helper), Self::Helper(other)) => helper == other,
            _ => false,
        }
    }
}

impl Eq for Credentials {}

impl PartialEq for Written {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(text), Self::Text(other)) => text.expose_secret() == other.expose_secret(),
            (Self::File(path), Self::File(other)) => path == other,
            _ => false,
        }
    }
}

impl Eq for Written {}

/// A credential helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The program: a name that is looked for in `PATH`, or a path. It gets the argument `get`.
    pub command: String,
    /// How long its credentials are used, unless the upstream refuses them before; `None` is
    /// forever.
    pub lifetime: Option<Duration>,
}

/// The credentials for some repositories of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryCredentials {
    /// Compared with the repository's name at the upstream: `library/debian`, `owner/app`.
    pub repositories: Vec<Pattern>,
    pub credentials: Credentials,
}

/// Reads the source that a section names, if it names one.
pub(super) fn read(section: &Section<'_>) -> Option<Credentials> {
    let login = login(section);
    let docker_config = file(section, "dockerconfig").map(Credentials::DockerConfig);
    let helper = section.section("exec", helper).map(Credentials::Helper);
    let sources = [
        ("username", login),
        ("dockerconfig", docker_config),
        ("exec", helper),
    ];
    let mut named = sources
        .into_iter()
        .filter_map(|(key, source)| Some((key, source?)));
    let (first, source) = named.next()?;
    if let Some((second, _)) = named.next() {
        let first = section.path(first);
        let reason = format!("and `{first}` are two sources of credentials; keep one");
        section.reject(second, reason);
    }
    Some(source)
}

/// Reads the list at `credentials`.
pub(super) fn of_repositories(section: &Section<'_>) -> Vec<RepositoryCredentials> {
    let items = section.sections("credentials", |item| {
        let repositories = item.values("repositories", |text, _| repository(text));
        if !item.has("repositories") {
            item.missing("repositories", "a list of patterns such as [owner/*]");
        }
        let credentials = read(item);
        if credentials.is_none() && !names_source(item) {
            item.missing("username", SOURCES);
        }
        credentials.map(|credentials| RepositoryCredentials {
            repositories,
            credentials,
        })
    });
    items.into_iter().flatten().collect()
}

/// Reads the list at `accounts`, beside the `first` account.
pub(super) fn accounts(section: &Section<'_>, first: Option<&Credentials>) -> Vec<Credentials> {
    let items = section.sections("accounts", |item| {
        let credentials = read(item);
        if credentials.is_none() && !names_source(item) {
            item.missing("username", SOURCES);
        }
        credentials
    });
    if !items.is_empty() && first.is_none() && !names_source(section) {
        let reason =
            "holds further accounts; write one of them as `username` and `password` beside it";
        section.reject("accounts", reason);
    }
    if items.len() > MAX_ACCOUNTS {
        let reason = format!("has {} items; write at most {MAX_ACCOUNTS}", items.len());
        section.reject("accounts", reason);
    }
    items.into_iter().flatten().collect()
}

fn repository(text: &str) -> Result<Pattern, &'static str> {
    let is_of_names = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let pattern = text.parse().ok().filter(|_| is_of_names);
    pattern.ok_or(
        "write a repository's name at the upstream, of lower-case letters, digits and . _ - /, or * \
         and ** for any of them, such as owner/**",
    )
}

/// Whether a section names a source, if only a wrong one.
fn names_source(section: &Section<'_>) -> bool {
    let keys = [
        "username",
        "usernamefile",
        "password",
        "passwordfile",
        "dockerconfig",
    ];
    keys.iter().any(|key| section.text(key).is_some()) || section.has("exec")
}

fn login(section: &Section<'_>) -> Option<Credentials> {
    let username = written(section, "username", "usernamefile");
    let password = written(section, "password", "passwordfile");
    let (given, missing) = match (username, password) {
        (Some((key, Written::Text(_))), Some(_)) if has_colon(section, key) => {
            section.reject(
                key,
                "contains a colon, which would separate it from the password; remove it",
            );
            return None;
        }
        (Some((_, username)), Some((_, password))) => {
            return Some(combined(section, username, password));
        }
        (Some((given, _)), None) => (given, "password"),
        (None, Some((given, _))) => (given, "username"),
        (None, None) => return None,
    };
    // A file that can't be read is a problem of its own.
    let file = if missing == "password" {
        "passwordfile"
    } else {
        "usernamefile"
    };
    if section.text(file).is_none() {
        let missing = section.path(missing);
        let reason = format!("is set, but `{missing}` isn't; write both or none");
        section.reject(given, reason);
    }
    None
}

fn has_colon(section: &Section<'_>, key: &'static str) -> bool {
    section.text(key).is_some_and(|text| text.contains(':'))
}

fn combined(section: &Section<'_>, username: Written, password: Written) -> Credentials {
    match (section.text("username"), username, password) {
        (Some(username), Written::Text(_), Written::Text(password)) => {
            Credentials::Fixed { username, password }
        }
        (_, username, password) => Credentials::Files { username, password },
    }
}

/// A value or the file of it, and the key that is written.
fn written(
    section: &Section<'_>,
    key: &'static str,
    file_key: &'static str,
) -> Option<(&'static str, Written)> {
    let file = file(section, file_key);
    let text = section.text(key);
    if text.is_some() && file.is_some() {
        let key = section.path(key);
        section.reject(file_key, format!("and `{key}` say the same; keep one"));
    }
    if let Some(text) = text {
        let printed = if key == "password" { HIDDEN } else { &text };
        section.print(key, printed);
        return Some((key, Written::Text(SecretString::from(text))));
    }
    Some((file_key, Written::File(file?)))
}

fn helper(section: &Section<'_>) -> Option<Helper> {
    let lifetime = section
        .text("lifetime")
        .map(|_| section.duration("lifetime", Duration::ZERO));
    if section.text("command").is_none() {
        if lifetime.is_some() {
            section.missing(
                "command",
                "the program, such as docker-credential-ecr-login",
            );
        }
        return None;
    }
    let command = section.value("command", |text| {
        let is_program = text.len() <= MAX_COMMAND && !text.contains('\0');
        is_program
            .then(|| text.to_owned())
            .ok_or("write the name or the path of a program")
    })?;
    Some(Helper { command, lifetime })
}

/// The path of a file; opened once, so that a wrong path shows at the start.
pub(super) fn file(section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
    let path = section.value(key, |text| readable(text).map(|()| text.to_owned()));
    path.map(PathBuf::from)
}

fn readable(path: &str) -> Result<(), impl Display + use<>> {
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err("it is not a file".to_owned()),
        Err(error) => Err(format!("it can't be read: {error}")),
    }
}
