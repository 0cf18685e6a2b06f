//! File descriptors: how many the process may have, and how many connections that allows.
//!
//! Clients get what files, upstreams and operators don't need, so that a flood of connections can't
//! keep the mirror from answering those that it has.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::error_chain::on_one_line;
use crate::server::ConnectionLimits;

/// Connections of operators, on each of their two listeners.
pub(super) const OPERATORS: ConnectionLimits = ConnectionLimits {
    total: 32,
    per_address: None,
};
/// Descriptors for what doesn't grow with clients: the log, the runtime, open blobs that are kept for
/// the next request (256), the journal, operators' connections.
const FIXED: usize = 384;
/// Descriptors of one stream from an upstream: its connection and the file that is written.
const PER_STREAM: usize = 2;
/// Descriptors of a client's connection: itself and the file that is sent.
const PER_CONNECTION: usize = 2;
/// The default never exceeds it: so many busy connections take a few hundred MiB.
const MAX_DEFAULT: usize = 16_384;

/// What a number of file descriptors is enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The most connections of clients, whatever is configured.
    pub available: usize,
    /// The configured limit of clients' connections, else the default. May exceed `available`.
    pub connections: usize,
}

impl Descriptors {
    /// Of a process that may have `limit` descriptors.
    pub fn of(config: &Config, limit: usize) -> Self {
        let available = available(limit, config.proxy.streams.total);
        let default = (available / PER_CONNECTION).clamp(1, MAX_DEFAULT);
        Self {
            available,
            connections: config.http.limits.total.unwrap_or(default),
        }
    }

    /// How many descriptors this process may have, once its soft limit is raised to the hard one.
    pub fn possible() -> usize {
        descriptors(getrlimit(Resource::Nofile).maximum)
    }
}

/// Raises the process's limit of descriptors as far as it may, and derives the limits of clients'
/// connections.
pub(super) fn connection_limits(config: &Config) -> ConnectionLimits {
    let limits = config.http.limits;
    let Descriptors {
        available,
        connections: total,
    } = Descriptors::of(config, raise());
    if total > available {
        tracing::warn!(
            configured = total,
            possible = available,
            "http.limits.connections exceeds what the limit of open files (RLIMIT_NOFILE) allows; \
             raise that, or lower the key"
        );
    }
    ConnectionLimits {
        total: total.min(available),
        per_address: limits.per_address,
    }
}

/// Descriptors that clients may use, of `descriptors` in all. At least a half: below that, more
/// files would serve fewer clients.
fn available(descriptors: usize, streams: usize) -> usize {
    let reserve = FIXED + PER_STREAM * streams;
    descriptors
        .saturating_sub(reserve)
        .max(descriptors / 2)
        .max(1)
}

/// Raises the soft limit to the hard one. Returns how many descriptors the process may have.
fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    let current = match setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        Ok(()) => current,
        Err(error) => {
            tracing::debug!(error = %on_one_line(&error), "the limit of open files can't be raised");
            limit.current
        }
    };
    descriptors(current)
}

/// None is no limit.
fn descriptors(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConnectionLimits as Configured;
    use std::num::NonZeroUsize;

    #[test]
    fn clients_get_what_files_and_upstreams_do_not_need() {
        assert_eq!(available(524_288, 128), 524_288 - 384 - 256);
        assert_eq!(available(1024, 128), 512, "at least a half");
        assert_eq!(available(1, 128), 1);
        assert_eq!(available(usize::MAX, 4096), usize::MAX - 384 - 8192);
    }

    #[test]
    fn the_soft_limit_is_raised_and_configured_limits_override_the_default() {
        let mut config = Config::default_config();
        let possible = available(raise(), config.proxy.streams.total);
        let default = connection_limits(&config);
        assert_eq!(default.total, (possible / 2).clamp(1, MAX_DEFAULT));
        assert_eq!(default.per_address, None);
        config.http.limits = Configured {
            total: Some(7),
            per_address: NonZeroUsize::new(3),
        };
        let configured = connection_limits(&config);
        assert_eq!(
            (configured.total, configured.per_address),
            (7, NonZeroUsize::new(3))
        );
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
