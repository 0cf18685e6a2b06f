//! Tags and referrers.

use std::sync::Arc;

use serde_json::json;

use super::HostedHandlers;
use crate::access::{Denied, Permission};
use crate::metrics::Outcome;
use crate::mirror::Exchange;
use crate::oci::manifest::referrers_index;
use crate::oci::{Descriptor, Digest, Page, Reference, RepoName, Tag};
use crate::server::answer;
use crate::server::cache_status::Origin;
use crate::server::call::{Answered, Call, CallError};

/// Most bytes of a page of referrers: those of a manifest.
const MAX_PAGE: u64 = 4 << 20;
/// Bytes of an index without descriptors, and of what separates them, at most.
const FRAME: u64 = 256;

impl HostedHandlers {
    pub(super) async fn tags(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        page: &Page,
    ) -> Result<Answered, CallError> {
        call.addressed.set(self.metrics_id);
        call.permit_hosted(&self.access, name, (Permission::List, None))?;
        let all = self.hosted().tags(name).await?;
        let (tags, more) = page.of(&all, Tag::as_str);
        let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
        let last = tags.last().filter(|_| more);
        let path = format!("{name}/tags/list");
        let next = last.map(|last| self.links.next_page(&path, page, tags.len(), last, call.ns));
        let document = json!({"name": name.as_str(), "tags": tags});
        let origin = Origin::list(Outcome::Hit, Exchange::default());
        let mut response = answer::list(&document, next.as_deref(), origin);
        answer::keep_private(!self.access.is_open(), &mut response);
        Ok((response, Outcome::Hit))
    }

    /// A repository that doesn't exist has none, and so has one that the caller may not know of.
    pub(super) async fn referrers(
        &self,
        call: &Call<'_>,
        name: &RepoName,
        digest: Digest,
        (artifact_type, last): (Option<&str>, Option<&str>),
    ) -> Result<Answered, CallError> {
        let all = match self.permit(call, name, Some(&Reference::Digest(digest))) {
            Ok(()) => self.hosted().referrers(name, &digest).await?,
            Err(CallError::Denied(Denied::Hidden(_))) => Vec::new(),
            Err(error) => return Err(error),
        };
        let wanted = all.iter().filter(|referrer| {
            artifact_type.is_none_or(|wanted| referrer.artifact_type.as_deref() == Some(wanted))
        });
        let wanted: Vec<(String, &Arc<Descriptor>)> = wanted
            .map(|referrer| (referrer.digest.to_string(), referrer))
            .collect();
        let start = last.map_or(0, |last| {
            wanted.partition_point(|(digest, _)| digest.as_str() <= last)
        });
        let rest = wanted.get(start..).unwrap_or_default();
        let page = rest.get(..fitting(rest)).unwrap_or(rest);
        let next = page.last().filter(|_| page.len() < rest.len());
        let next = next.map(|(last, _)| {
            let parameters = [
                ("artifactType", artifact_type),
                ("last", Some(last.as_str())),
                ("ns", call.ns),
            ];
            let path = format!("{name}/referrers/{digest}");
            self.links.page(&path, &parameters)
        });
        let index = referrers_index(page.iter().map(|(_, referrer)| &***referrer));
        let origin = Origin::list(Outcome::Hit, Exchange::default());
        let is_filtered = artifact_type.is_some();
        let mut response = answer::referrers(index.into(), is_filtered, origin);
        answer::link_next(&mut response, next.as_deref());
        answer::keep_private(!self.access.is_open(), &mut response);
        Ok((response, Outcome::Hit))
    }
}

/// How many descriptors fit into a page: at least one.
fn fitting(all: &[(String, &Arc<Descriptor>)]) -> usize {
    let mut bytes = FRAME;
    let fits = |(_, referrer): &&(String, &Arc<Descriptor>)| {
        let length = serde_json::to_vec(referrer.as_ref()).map_or(0, |text| text.len() as u64);
        bytes += length + 1;
        bytes <= MAX_PAGE
    };
    all.iter().take_while(fits).count().max(1)
}
