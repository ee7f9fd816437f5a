//! What the service manager is told (sd_notify(3)). Silent where there is none.

use sd_notify::NotifyState;
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub struct Manager {
    present: bool,
    status: String,
    complained: bool,
}

impl Manager {
    /// The manager that NOTIFY_SOCKET names, if it does.
    pub fn find() -> Manager {
        let present = std::env::var_os("NOTIFY_SOCKET").is_some();
        Manager { present, status: String::new(), complained: false }
    }

    /// Whether anybody listens.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// Interval within which the manager wants to be told that we live (sd_watchdog_enabled(3)).
    pub fn watchdog(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|_| self.present)
    }

    /// The socket serves, or a reload has ended.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// A reload begins.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => log::warn!("cannot read the monotonic clock: {error}"),
        }
    }

    /// The end begins.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// The end will take `more` from now.
    pub fn extend(&mut self, more: Duration) {
        let more_us = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::ExtendTimeoutUsec(more_us)]);
    }

    /// We live.
    pub fn feed(&mut self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// What we do, in a line; told where it is new.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            self.tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    fn tell(&mut self, states: &[NotifyState]) {
        if !self.present {
            return;
        }
        if let Err(error) = sd_notify::notify(states)
            && !std::mem::replace(&mut self.complained, true)
        {
            log::warn!("NOTIFY_SOCKET: cannot tell the service manager: {error}");
        }
    }
}
