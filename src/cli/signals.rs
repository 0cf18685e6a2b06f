//! Signals: SIGTERM and SIGINT stop the server; others are logged and have no effect.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are handled from [`listen`](Self::listen) on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    quit: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for a stop signal and returns its name. Logs the others.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            let signal = tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::warn!(
                        signal = "SIGHUP",
                        "ignored: a changed configuration takes effect after a restart"
                    );
                    continue;
                }
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
                _ = self.quit.recv() => "SIGQUIT",
            };
            tracing::info!(signal, "ignored: SIGTERM stops the server");
        }
    }
}
