//! The registry API over HTTP/1.1 and HTTP/2, TCP and unix sockets.
//!
//! A request goes [`connection`] -> [`service`] (action, caller, conditions) -> [`handlers`] (target,
//! authorization, mirror) or [`hosted`] -> [`answer`] (headers, ranges) -> [`body`]. The pieces of a body ([`chunk`])
//! go out through the connection's socket, which sends ranges of files by itself; TLS begins in [`tls`]. Errors of every
//! module become status and error document in [`error`] and nowhere else. [`access`] writes one line and counts, once the body has ended.
//!
//! What must never happen: a body that isn't whole ends well; an error of ours or the upstream's is
//! turned into "not found".

pub mod access;
mod answer;
mod body;
mod buffers;
mod cache_status;
mod call;
mod chunk;
mod conditional;
mod connection;
mod current;
mod cursor;
mod error;
mod handlers;
mod hosted;
mod http2;
mod leftovers;
mod limits;
mod links;
pub mod listener;
mod peer_gate;
mod push_body;
mod push_head;
mod redirect;
mod relay_head;
mod relayed_body;
mod request;
#[cfg(target_os = "linux")]
mod sendfile;
mod service;
mod socket;
mod tls;
mod tls_socket;
mod turn;

pub use answer::refused;
pub use body::Body;
pub use buffers::ResponseBuffers;
pub use chunk::{Chunk, FileChunk};
pub use connection::{ConnectionSettings, serve};
pub use current::Current;
pub use cursor::BodyError;
pub use hosted::HostedRepositories;
pub use limits::{Admission, ConnectionLimits};
pub use peer_gate::PeerGate;
pub use request::{Handler, Peer, RequestBody, RequestBodyError};
pub use service::{Gate, ServerSettings, Service};
pub use socket::LINGER;
