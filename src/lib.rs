//! millpond: a pull-through caching mirror for container registries.
//!
//! # The story of one pull
//!
//! 1. [`server`] accepts a connection and gives each request to its service, where
//!    [`oci::route`] turns method and URI into a [`oci::Route`]. Nothing after that sees a raw path.
//! 2. [`mirror`] chooses the upstream: containerd's `ns` parameter, else the first component of the
//!    repository's name, else the Host header, else the default upstream.
//! 3. A manifest comes from the [`storage`], where it is linked into the repository. A tag is believed
//!    for a while, then one HEAD asks the [`upstream`] for all clients; while that can't answer, the
//!    last known digest is served, marked stale.
//! 4. A blob comes from the [`storage`], too, when it is linked; when another repository has it, one
//!    HEAD proves that this one may have it. Otherwise [`download`] joins or starts THE download of it.
//! 5. [`download`] streams the upstream into a staged file in a task of its own, hashing as it goes.
//!    Every client follows what is there: each byte comes from the upstream once, whoever joins late,
//!    whoever leaves, whoever is slow, whatever breaks. Large blobs that come slowly come in several
//!    streams, and so does a range far ahead; what was left unfinished is taken up again.
//! 6. On the last byte the digest is checked; then the end of the blob is handed out, the file is
//!    synced and renamed into the store, and linked. A wrong digest breaks every whole body and is
//!    never committed.
//! 7. When a client asks for an image's first layer, [`mirror`] fetches the rest of the image ahead.
//! 8. [`retention`] is told of every use and every link. It decides what goes: content that was not
//!    used for long, damaged content, and the least recently used images when space is short. Nothing
//!    else deletes, except that [`mirror`] removes tags that the upstream no longer has.
//!
//! [`config`] says what to mirror, [`app`] wires the modules and owns every task, [`admin`] shows
//! [`metrics`] and health, [`clock`] is the only source of time, and [`cli`] is the program.
//!
//! The modules build on each other in one direction only; `ARCHITECTURE.md` has the map, and
//! `tests/modules.rs` holds the code to it.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod download;
pub mod error_chain;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod retention;
pub mod server;
pub mod storage;
pub mod tasks;
pub mod upstream;
