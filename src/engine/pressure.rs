//! What the engine gives up when memory is short.

use std::sync::atomic::{AtomicU8, Ordering};

/// How short memory is; each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Memory suffices.
    #[default]
    None,
    /// Nothing is pinned.
    Pins,
    /// The window is as small as the model allows.
    Window,
    /// Requests wait.
    Hold,
}

impl Pressure {
    /// Every level, in rising order.
    pub const ALL: [Pressure; 4] =
        [Pressure::None, Pressure::Pins, Pressure::Window, Pressure::Hold];

    /// Its name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Pressure::None => "none",
            Pressure::Pins => "pins",
            Pressure::Window => "window",
            Pressure::Hold => "hold",
        }
    }
}

/// A level that threads share.
#[derive(Debug, Default)]
pub(super) struct SharedPressure(AtomicU8);

impl SharedPressure {
    pub fn get(&self) -> Pressure {
        Pressure::ALL[usize::from(self.0.load(Ordering::Relaxed)).min(Pressure::ALL.len() - 1)]
    }

    /// Sets the level and returns the one before.
    pub fn set(&self, level: Pressure) -> Pressure {
        Pressure::ALL[usize::from(self.0.swap(level as u8, Ordering::Relaxed))]
    }
}
