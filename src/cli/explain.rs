//! `millpond access explain`.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;

use super::{Located, load, print};
use crate::access::{self, Permission, Resource};
use crate::auth::{Caller, User};
use crate::config::PERMISSIONS;
use crate::oci::RepoName;

/// The user that stands for callers without credentials.
const ANONYMOUS: &str = "anonymous";

#[derive(Debug, clap::Args)]
pub(super) struct Question {
    /// The caller's user name; anonymous stands for a caller without credentials
    user: String,
    /// A repository by its stored name: library/debian, ghcr.io/owner/app
    #[arg(value_name = "REPO")]
    repository: String,
    /// pull, push, delete or list
    #[arg(long, default_value = "pull", value_parser = action)]
    action: Permission,
    /// The caller's address
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// A group of the user; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    located: Located,
}

fn action(text: &str) -> Result<Permission, String> {
    let mut known = PERMISSIONS.iter();
    let known = known.find(|(name, _)| *name == text);
    let action = known.map(|(_, permission)| *permission);
    action.ok_or_else(|| "write pull, push, delete or list".to_owned())
}

pub(super) fn explain(question: &Question) -> anyhow::Result<()> {
    let config = load(question.located.config.as_deref())?.config;
    let stored = config.proxy.stored_reference(&question.repository);
    let repository = stored.parse::<RepoName>();
    let repository = repository.with_context(|| format!("{stored:?} is no repository"))?;
    let user = (question.user != ANONYMOUS).then(|| User {
        name: question.user.clone(),
        groups: question.groups.clone(),
    });
    let caller = Caller {
        user: user.map(Arc::new),
        ..Caller::anonymous(question.address)
    };
    let upstream = if config.is_hosted(&repository) {
        access::HOSTED
    } else {
        &config.proxy.upstream_of(&repository).name
    };
    let resource = Resource {
        upstream,
        repository: &repository,
        reference: None,
    };
    let text = access::explain(&config, &caller, &resource, question.action);
    print(&format!("{text}\n"))
}
