//! The TLS of listeners: certificate, key and clients' authorities, read from files and read again when
//! they change.
//!
//! [`ServerTls`] holds what is in use as a [`Version`]; each connection takes the current one for its
//! handshake (`server/tls`), so that a replacement touches no connection. [`ServerTls::watch`] reads the
//! files every [`INTERVAL`] off the runtime's threads: reading them, and not their times, also finds
//! a Kubernetes secret whose symbolic link was changed. Files that can't be used are refused
//! with one log line, and the version in use stays.
//!
//! What must never happen: a key in a log, an error or a `Debug`; a client's certificate that counts
//! as verified and isn't.

mod clients;
mod error;
mod expiry;
mod files;
mod server;
mod signatures;
#[cfg(test)]
mod tests;

pub use error::TlsError;
pub use server::{Checked, EXPIRY_WARNING, INTERVAL, ServerTls, Version};
pub(crate) use signatures::signature_methods;
