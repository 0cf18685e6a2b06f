//! millpond: a pull-through caching mirror for container registries.
//!
//! # The story of one pull
//!
//! 1. [`server`] accepts a connection and gives each request to its service, where
//!    [`oci::action`] turns method and URI into a [`oci::Route`]. Nothing after that sees a raw path.
//!    [`tls`] secures the connection where it is configured, [`auth`] finds out who the caller is, and
//!    [`access`] decides what the caller may do before anything is looked up.
//! 2. [`mirror`] chooses the upstream: containerd's `ns` parameter, else the first component of the
//!    repository's name, else the Host header, else the default upstream.
//! 3. A manifest comes from the [`cache`] if it is linked into the repository. A tag's digest counts
//!    as fresh for a while; then one HEAD asks the [`upstream`], at one of its endpoints, for all
//!    clients. While none of them can answer, the last known digest is served, marked stale.
//! 4. A blob comes from the [`cache`], too, if it is linked. If only another repository is linked to
//!    it, a HEAD proves that this repository has it. Otherwise [`download`] joins or starts its
//!    download from this upstream.
//! 5. [`download`] streams the blob from the upstream into a staged file, in a task of its own, hashing
//!    it meanwhile. Every client follows that download: each byte crosses the line once, however late
//!    a client joins and whichever client leaves. When one repository's source fails, the download
//!    continues with the source of another repository that joined. A slow large blob, and a range far
//!    ahead, get further streams; an unfinished download is resumed later.
//! 6. After the last byte the digest is verified. Only then do clients get the end of the blob; the
//!    file is synced, renamed into the store, and linked. Content with a wrong digest breaks off every
//!    whole body and is never committed.
//! 7. When a client asks for an image's first layer, [`mirror`] fetches the rest of the image ahead.
//! 8. [`cache`] counts every use and makes every link. It decides what is removed: content that was
//!    not used for long, damaged content, and the least recently used images when space is short.
//!    Nothing else deletes; [`mirror`] has it remove tags that the upstream no longer has.
//!
//! A push goes to [`hosted`] instead of [`mirror`]: it receives uploads, checks manifests, and keeps both in
//! the [`cache`], beside what is mirrored. It never asks an upstream.
//!
//! [`copy`] moves whole images: between registries and files, with the same [`upstream`] client and without the
//! mirror; and, by way of [`mirror`], into the [`cache`] before clients pull them.
//!
//! Several servers may act as one mirror: [`replicas`] says which of them owns a digest or a tag, and
//! [`upstream`] asks the owner before it asks the registry. An object store that all of them use is a second,
//! shared store: [`bucket`] reads content from it before an upstream is asked, uploads what was committed, and
//! removes from it what nobody uses.
//!
//! [`config`] says what to mirror, [`app`] wires the modules and owns every task, [`admin`] shows
//! [`metrics`] and [`health`], [`telemetry`] carries the id and the trace of a request through all that it
//! causes, [`log_levels`] says what is logged, [`clock`] is the only source of time, and [`cli`] is the program.
//!
//! The modules build on each other in one direction only; `ARCHITECTURE.md` has the map, and
//! `tests/modules/` holds the code to it.

pub mod access;
pub mod admin;
pub mod app;
pub mod auth;
pub mod bucket;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod copy;
pub mod download;
pub mod error_chain;
pub mod health;
pub mod hosted;
pub mod kept_file;
pub mod line_writer;
pub mod log_levels;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod renewal;
pub mod replicas;
pub mod server;
pub mod storage;
pub mod systemd;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod workers;
