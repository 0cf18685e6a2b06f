//! The whole server, in this process, against a scripted upstream: what a client sees, what the
//! upstream is asked, and what is left behind, for every behaviour and every fault.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

// The names under which `testkit/faulty` finds them.
use millpond::{oci, storage};

mod grants;
mod harness;

mod abandoned;
mod access;
mod accounts;
mod ahead;
mod api;
mod auth;
mod blobs;
mod bucket;
mod bucket_adopted;
mod bucket_hosted;
mod bucket_redirect;
mod bundles;
mod cache;
mod callers;
mod chaos;
mod check;
mod client_config;
mod connections;
mod copy;
mod counting;
mod damage;
mod disk;
mod doctor;
mod downloads;
mod endpoints;
mod failures;
mod faithful;
mod faults;
mod freshness;
mod health;
mod hosted_access;
mod hosted_bad;
mod hosted_clients;
mod hosted_discovery;
mod hosted_manifests;
mod hosted_mirrored;
mod hosted_uploads;
mod http2;
mod keep_fresh;
mod lists;
mod logging;
mod manifests;
mod metrics;
mod multi_range;
mod negatives;
mod offline;
mod oidc;
mod operate;
mod prefetch;
mod private;
mod process;
mod ranges;
mod rate_limits;
mod reload;
mod replicas;
mod replicas_access;
mod replicas_hosted;
mod replicas_many;
mod replicas_members;
mod replicas_relay;
mod replicas_setup;
mod replicas_tags;
mod request_ids;
mod rollout_model;
mod routing;
mod scripts;
mod sending;
mod server;
mod simulated_day;
mod slow_pushes;
mod sources;
mod space;
mod tags;
mod tls;
#[cfg(feature = "otel")]
mod traces;
mod trust_groups;
mod warm;
