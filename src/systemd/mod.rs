//! systemd: the listening sockets that it hands over (`sockets`), and what it is told of the process
//! (`notify`). Outside systemd there are none, and nobody is told.
//!
//! Sources: `sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`.

mod notify;
mod sockets;

pub use notify::Notifier;
pub use sockets::{Bound, Handed, HandedSocket, SocketsError};

/// A variable of the process's environment, if it is set and UTF-8.
#[expect(
    clippy::disallowed_methods,
    reason = "variables of systemd's, not of the configuration's"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Whether a variable with a process id means this process: systemd's variables are inherited by
/// children, which they aren't for.
fn is_own(pid: &str) -> bool {
    pid.parse() == Ok(std::process::id())
}
