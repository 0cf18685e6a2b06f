//! What the service manager is told: `sd_notify(3)`.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use super::{is_own, variable};
use crate::error_chain::on_one_line;

/// Tells the service manager what the process does. Clones share the connection. Nothing waits for the
/// manager, and nothing fails if it doesn't listen.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    pub fn from_environment() -> Self {
        let Some(path) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let socket = connect(&path).inspect_err(|error| {
            tracing::warn!(path, error = %on_one_line(error), "the service manager can't be told of this process");
        });
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| is_own(&pid));
        let micros = variable("WATCHDOG_USEC").filter(|_| is_ours);
        Self {
            socket: socket.ok().map(Arc::new),
            watchdog: micros.and_then(|micros| watchdog(&micros)),
        }
    }

    /// Requests are answered.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The process is about to end.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// The process works: to be said once in [`watchdog`](Self::watchdog).
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often [`alive`](Self::alive) is to be said: twice in the time after which the manager takes
    /// the process for hung. `None` if it doesn't watch.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::debug!(state, error = %on_one_line(&error), "the service manager wasn't told");
        }
    }
}

/// Half of the manager's time.
fn watchdog(micros: &str) -> Option<Duration> {
    let micros = micros.parse().ok().filter(|micros| *micros > 1)?;
    Some(Duration::from_micros(micros) / 2)
}

/// `@` begins a name in the abstract namespace.
fn connect(path: &str) -> io::Result<UnixDatagram> {
    let address = match path.strip_prefix('@') {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_is_told_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier {
            socket: Some(Arc::new(connect(path.to_str().unwrap()).unwrap())),
            watchdog: watchdog("30000000"),
        };
        assert_eq!(notifier.watchdog(), Some(Duration::from_secs(15)));
        let heard = || {
            let mut text = [0; 256];
            let length = manager.recv(&mut text).unwrap();
            String::from_utf8(text[..length].to_vec()).unwrap()
        };
        notifier.ready("listening");
        assert_eq!(heard(), "READY=1\nSTATUS=listening");
        notifier.reloading();
        let reloading = heard();
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(micros.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
        notifier.alive();
        assert_eq!(heard(), "WATCHDOG=1");
        notifier.stopping("draining");
        assert_eq!(heard(), "STOPPING=1\nSTATUS=draining");
        drop((manager, dir));
        // Nobody listens any more.
        notifier.alive();
    }

    #[test]
    fn without_a_manager_nothing_is_watched() {
        assert_eq!(Notifier::default().watchdog(), None);
        for unset in ["0", "1", "x", "-1", ""] {
            assert_eq!(watchdog(unset), None, "{unset}");
        }
    }
}
