//! Signals: SIGTERM and SIGINT stop the server, SIGHUP makes it read its configuration again; others are
//! logged and have no effect.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
pub(super) enum Asked {
    /// With the signal's name.
    Stop(&'static str),
    Reload,
}

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

    /// Waits for a signal that has an effect. Logs the others. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        loop {
            let signal = tokio::select! {
                _ = self.terminate.recv() => return Asked::Stop("SIGTERM"),
                _ = self.interrupt.recv() => return Asked::Stop("SIGINT"),
                _ = self.hangup.recv() => return Asked::Reload,
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
                _ = self.quit.recv() => "SIGQUIT",
            };
            tracing::info!(signal, "ignored: SIGTERM stops the server");
        }
    }

    /// Waits for a stop signal and returns its name. All others wait for [`next`](Self::next). Cancel safe.
    pub(super) async fn stop_alone(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for a stop signal and returns its name. The configuration isn't read again meanwhile.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Asked::Stop(signal) => return signal,
                Asked::Reload => {
                    tracing::info!(signal = "SIGHUP", "ignored: the server starts or stops");
                }
            }
        }
    }
}
