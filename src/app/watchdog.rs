//! Tells the service manager again and again that the process works.

use std::sync::Arc;

use crate::systemd::Notifier;

impl super::App {
    /// Says so twice in the manager's time, if it watches, from a task of the runtime and only while a
    /// request is answered in time: a runtime that hangs says nothing, and neither does a mirror that
    /// answers nothing. Continues to the end of the process, through a drain.
    pub fn keep_alive(&self, notifier: &Notifier) {
        let Some(period) = notifier.watchdog() else {
            return;
        };
        let (notifier, current) = (notifier.clone(), Arc::clone(&self.current));
        self.shared.background.spawn_required("watchdog", async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Half of what is left until the manager gives up.
                match tokio::time::timeout(period / 2, current.answers()).await {
                    Ok(true) => notifier.alive(),
                    Ok(false) | Err(_) => {
                        tracing::error!("a request isn't answered: the watchdog isn't told that the process works");
                    }
                }
            }
        });
    }
}
