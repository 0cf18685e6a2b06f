//! The endpoints of an upstream: where it is asked instead of at its `remoteurl` alone.

use super::authorize::{Authorize, CallerAccess};
use super::registry_url::registry_url;
use super::section::Section;
use super::upstream::{self, Endpoint, EndpointSelection, Upstream};

/// Endpoints of one upstream at most: a request may be sent to each of them.
const MAX_ENDPOINTS: usize = 16;
const MAX_WEIGHT: usize = 100;

/// Reads the endpoints of an upstream whose other keys have been read.
pub(super) fn read(section: &Section<'_>, upstream: &mut Upstream) {
    let choices = [
        ("order", EndpointSelection::Order),
        ("latency", EndpointSelection::Latency),
    ];
    upstream.endpoint_selection = section.choice(
        "endpointselection",
        "write order or latency",
        &choices,
        EndpointSelection::default(),
    );
    let items = section.sections("endpoints", |item| endpoint(item, upstream));
    if items.is_empty() {
        return;
    }
    if upstream.caller.authorize == Authorize::Caller {
        let reason = "can't be used with `authorize: caller`: who may read a repository is the decision \
                      of one registry, and the passwords of clients would go to every endpoint; remove \
                      one of the two";
        section.reject("endpoints", reason);
    }
    if items.len() > MAX_ENDPOINTS {
        let reason = format!("has {} items; write at most {MAX_ENDPOINTS}", items.len());
        section.reject("endpoints", reason);
    }
    let endpoints: Vec<_> = items.into_iter().flatten().collect();
    let mut labels: Vec<_> = endpoints.iter().map(Endpoint::label).collect();
    labels.sort();
    for pair in labels.windows(2) {
        if let [one, other] = pair
            && one == other
        {
            section.reject("endpoints", format!("has `{one}` twice; keep one"));
        }
    }
    upstream.endpoints = endpoints;
}

/// An item of `endpoints`. One without `url` is the upstream itself, with the keys beside `remoteurl`.
fn endpoint(item: &Section<'_>, upstream: &Upstream) -> Option<Endpoint> {
    let weight = item.number("weight", 0..=MAX_WEIGHT, 0);
    let fallback_on_404 = item.bool("fallbackon404", false);
    let prefix = item.value("prefix", |text| {
        let prefix = text.parse().ok();
        prefix.ok_or("write the part of the path before the repository's name, such as hub-proxy")
    });
    let registry = if item.text("url").is_some() {
        let url = registry_url(item, "url")?;
        if url == upstream.url && prefix.is_none() {
            let reason = "is the upstream's own `remoteurl`; leave it out, so that the keys beside \
                          `remoteurl` apply";
            item.reject("url", reason);
        }
        let caller = CallerAccess {
            authorize: Authorize::Shared,
            ..upstream.caller
        };
        upstream::connection(item, upstream.name.clone(), url, caller)
    } else {
        upstream.clone()
    };
    Some(Endpoint {
        registry,
        prefix,
        weight,
        fallback_on_404,
    })
}
