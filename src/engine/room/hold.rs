//! What the engine's thread holds itself: the window, what lies in it, and what the process takes
//! beside what is counted.

use super::super::error::EngineError;
use super::super::model::Model;
use super::super::needs::{SMALLEST_WINDOW_BYTES, WINDOW_BYTES};
use super::super::pins::UNPINNED_SHARE;
use super::super::pressure::Pressure;
use super::super::reel::Reel;
use super::super::request::Cancel;
use super::{Room, Wait};
use crate::stream::{Category, Grant, Keep, Ledger, OverBudget, Slots};
use crate::sys::memory::{self, MachineMemory};
use crate::sys::{code, heap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bytes of free memory that the C library's heap may lose between what is used, from one pass to
/// the next: giving them back takes a millisecond, and taking them anew another.
const LOST_BYTES: u64 = 4 << 20;

/// What a window leaves to others where it cannot be as wide as it should: a text's pieces and the
/// replies of small requests, which would wait for it one by one.
const LEFT_BYTES: u64 = 64 << 10;

/// Steps of what the process's share is settled to.
const SETTLED_BYTES: u64 = 256 << 10;

/// Longest wait of the engine's thread for what requests and tokenizers will give back: nobody is
/// served meanwhile.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// Share of what is free that a pass may take to keep freed tensors in; the rest is for whoever
/// comes meanwhile.
const SPARE_SHARE: u64 = 4;

/// The engine's own grants.
pub(in super::super) struct Hold {
    pub room: Arc<Room>,
    window: Grant,
    /// What suits the budget, where nothing else is planned.
    pub usual_window_bytes: u64,
    /// What the window is set to by hand.
    fixed_window_bytes: Option<u64>,
    /// Where blocks that are read go, within the window.
    pub slots: Arc<Slots>,
    /// Anonymous memory beside the heap: stacks, the programs' own data.
    unheaped_bytes: u64,
    /// What the process holds, what the heap has lost since among it.
    process: Grant,
    /// The same at the start.
    process_bytes: u64,
}

impl Hold {
    /// Has so much granted for the process, and a window.
    pub fn new(
        room: &Arc<Room>,
        process_bytes: u64,
        fixed_window_bytes: Option<u64>,
    ) -> Result<Hold, OverBudget> {
        let ledger = &room.ledger;
        let process = ledger.try_grant(Category::Process, process_bytes)?;
        let window_bytes = fixed_window_bytes.unwrap_or_else(|| window_for(ledger));
        let window = ledger.try_grant(Category::Window, window_bytes)?;
        room.window_bytes.store(window_bytes, Ordering::Relaxed);
        Ok(Hold {
            room: Arc::clone(room),
            window,
            usual_window_bytes: window_bytes,
            fixed_window_bytes,
            slots: Arc::default(),
            unheaped_bytes: memory::process().anonymous_bytes.saturating_sub(heap::live_bytes()),
            process,
            process_bytes,
        })
    }

    /// Follows a budget that has changed: the window takes what suits it.
    pub fn follow_budget(&mut self) {
        self.rest();
        let ledger = &self.room.ledger;
        // Shrinking is always granted.
        let _ = self.window.resize(0);
        self.usual_window_bytes = self.fixed_window_bytes.unwrap_or_else(|| window_for(ledger));
        // Where requests hold what is missing, the next pass asks for it again.
        let _ = self.window.resize(self.usual_window_bytes.min(ledger.free_bytes()));
        self.room.window_bytes.store(self.window.bytes(), Ordering::Relaxed);
    }

    /// Gives back what passes have left in the heap, where it is much, and counts what the process
    /// has come to take: requests of many kinds run more code than passes alone.
    pub fn settle_losses(&mut self) {
        if self.lost_bytes() > LOST_BYTES || self.own_bytes() > self.process.bytes() {
            heap::trim();
            self.settle();
            if self.own_bytes() > self.process.bytes() {
                // Where there is no room for all the code that was run, it comes back as it is needed.
                code::release();
            }
        }
    }

    /// Anonymous memory that nobody knows of: holes in the heap, beside those of loaded graphs.
    fn lost_bytes(&self) -> u64 {
        let graphs_bytes: u64 = self.room.residents.each(|model| model.holes_bytes).iter().sum();
        let heap_bytes = heap::live_bytes() + heap::kept_bytes();
        let known = [heap_bytes, self.slots.bytes(), self.unheaped_bytes, graphs_bytes];
        memory::process().anonymous_bytes.saturating_sub(known.iter().sum())
    }

    /// Holds the process's share of the ledger against what the kernel says: what is resident and
    /// held for nothing else counts as the process's, and what a pass adds to it; what nobody uses
    /// gives way.
    fn settle(&mut self) {
        let own_bytes = self.own_bytes().next_multiple_of(SETTLED_BYTES);
        if own_bytes == 0 {
            return;
        }
        let wanted = self.process_bytes.max(own_bytes + LOST_BYTES);
        while self.process.resize(wanted).is_err() {
            if !self.room.spare_room("") {
                log::debug!("{own_bytes} bytes are held for nothing else, {wanted} have no room");
                let there = self.process.bytes() + self.room.ledger.free_bytes();
                let _ = self.process.resize(there.min(wanted));
                return;
            }
        }
    }

    /// What is resident between passes and held for nothing else. None where the program does not
    /// count: then it may be anybody's.
    fn own_bytes(&self) -> u64 {
        if heap::live_bytes() == 0 {
            return 0;
        }
        // Pins are in slots.
        let held = [Category::Graph, Category::Tokenizer, Category::Session, Category::Request];
        let held_bytes: u64 =
            held.map(|category| self.room.ledger.held_bytes(category)).iter().sum();
        let known_bytes = held_bytes + self.slots.bytes() + heap::kept_bytes();
        memory::process().resident_bytes.saturating_sub(known_bytes)
    }

    /// A grant for the first request of a pass, to which what is kept for the next one goes over; as
    /// [`Hold::wait_alone`].
    pub fn grant_alone(
        &mut self,
        model: &Arc<Model>,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<Grant, EngineError> {
        self.room.unshelve();
        let granted = self.wait_alone(model, bytes, own_bytes, cancel);
        if granted.is_err() {
            heap::keep_within(0);
        }
        granted
    }

    /// A grant for the first request of a pass, which holds `own_bytes` with its model; whatever
    /// can give way does before it is refused: what nobody uses, the window but for its smallest,
    /// what is missed soonest. Then others have a moment to give back what they hold.
    fn wait_alone(
        &mut self,
        model: &Arc<Model>,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<Grant, EngineError> {
        let mut wait = Wait::new(PATIENCE);
        let smallest_bytes = model.reel().largest_unit_bytes;
        loop {
            let returns = self.room.ledger.returns();
            let window_bytes = self.window.bytes();
            let refused = match self.room.ledger.try_grant(Category::Activations, bytes) {
                Ok(grant) => return Ok(grant),
                Err(refused) => {
                    let beside = refused.beside(own_bytes);
                    beside.without(window_bytes.saturating_sub(smallest_bytes))
                }
            };
            if self.frees(&refused, model) {
                continue;
            }
            let goes_on = refused.can_fit()
                && (self.room.make_room(model.name())
                    || wait.goes_on(&self.room, &refused, returns, cancel));
            if !goes_on {
                return Err(refused.into());
            }
        }
    }

    /// Frees what can be done without for a moment: what nobody uses, then the window but for its
    /// smallest, then what the process itself does not need. False where nothing of that is left.
    fn give_way(&mut self, model: &Model) -> bool {
        if self.room.spare_room(model.name()) {
            return true;
        }
        let smallest_bytes = model.reel().largest_unit_bytes;
        let gives = self.window.bytes() > smallest_bytes;
        if gives {
            self.slots.keep_within(0);
            // Shrinking is always granted.
            let _ = self.window.resize(smallest_bytes);
        }
        gives || self.shrink()
    }

    /// Frees something for what was refused, unless it never fits: that costs nobody anything.
    fn frees(&mut self, refused: &OverBudget, model: &Model) -> bool {
        if refused.can_fit() {
            return self.give_way(model);
        }
        let grown_bytes = self.process.bytes().saturating_sub(self.process_bytes);
        refused.without(grown_bytes).can_fit() && self.shrink()
    }

    /// Gives back what the process has come to hold beyond its share: code that comes back as it is
    /// needed, holes in the heap. Whether less is held for it now.
    fn shrink(&mut self) -> bool {
        let before = self.process.bytes();
        if before > self.process_bytes {
            heap::trim();
            code::release();
            self.settle();
        }
        self.process.bytes() < before
    }

    /// A grant for a session of `model`: before it is refused, all gives way that can be done
    /// without. Nobody is waited for.
    pub fn grant_session(&mut self, model: &Model, bytes: u64) -> Result<Grant, OverBudget> {
        loop {
            let window_bytes = self.window.bytes();
            let smallest_bytes = model.reel().smallest_window_bytes().min(window_bytes);
            match self.room.ledger.try_grant(Category::Session, bytes) {
                Ok(grant) => return Ok(grant),
                Err(refused) => {
                    let refused = refused.beside(model.graph_bytes());
                    let refused = refused.without(window_bytes - smallest_bytes);
                    if !self.frees(&refused, model) {
                        return Err(refused);
                    }
                }
            }
        }
    }

    /// Has the window's bytes granted: as many as are wanted, or as there are once all has given
    /// way that can, but no fewer than the largest unit.
    pub fn open_window(
        &mut self,
        model: &Model,
        wanted_bytes: u64,
        largest_unit_bytes: u64,
    ) -> Result<u64, EngineError> {
        let too_small = |window_bytes| EngineError::WindowTooSmall {
            model: model.name().to_string(),
            window_bytes,
            block_bytes: largest_unit_bytes,
        };
        if wanted_bytes < largest_unit_bytes {
            return Err(too_small(wanted_bytes));
        }
        let wanted_bytes = match self.room.ledger.claimed_bytes() {
            (0, _) => wanted_bytes,
            // What somebody waits for is not the window's to grow into.
            _ => {
                let there = self.window.bytes() + self.room.ledger.unclaimed_bytes();
                wanted_bytes.min(there.max(largest_unit_bytes))
            }
        };
        while self.window.resize(wanted_bytes).is_err() {
            if self.room.spare_room(model.name()) {
                continue;
            }
            let there = self.window.bytes() + self.room.ledger.free_bytes();
            if there < largest_unit_bytes {
                if self.room.make_room(model.name()) {
                    continue;
                }
                return Err(too_small(there));
            }
            // Others may take some of it meanwhile: then it is tried again.
            let there = there.saturating_sub(LEFT_BYTES).clamp(largest_unit_bytes, wanted_bytes);
            if self.window.resize(there).is_ok() {
                break;
            }
        }
        let window_bytes = self.window.bytes();
        self.room.window_bytes.store(window_bytes, Ordering::Relaxed);
        Ok(window_bytes)
    }

    /// Gives those who wait for room what the window can do without: between two passes it is as wide
    /// as it could be, and nobody else gives anything back while a text waits in the midst of them.
    pub fn narrow(&mut self) {
        let smallest = self.room.residents.each(|model| model.reel().smallest_window_bytes());
        let smallest_bytes = smallest.into_iter().max().unwrap_or(0);
        let (_, missing_bytes) = self.room.ledger.claimed_bytes();
        let missing_bytes = missing_bytes.next_multiple_of(LEFT_BYTES);
        let window_bytes = self.window.bytes().saturating_sub(missing_bytes).max(smallest_bytes);
        if window_bytes < self.window.bytes() {
            self.slots.keep_within(0);
            // Shrinking is always granted.
            let _ = self.window.resize(window_bytes);
        }
    }

    /// Bytes of the window.
    pub fn window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// Lets so many bytes be held by reading beside a pass: the window's, and what is missing there.
    pub fn hold_for_reading(&mut self, bytes: u64) -> Result<Grant, EngineError> {
        let more = bytes.saturating_sub(self.window.bytes());
        let grant = self.room.ledger.try_grant(Category::Window, more)?;
        // Those that are read meanwhile find theirs again.
        self.slots.keep_within(self.window.bytes() + more);
        Ok(grant)
    }

    /// Gives back what is kept for the next pass.
    pub fn rest(&mut self) {
        self.slots.keep_within(0);
        self.room.unshelve();
        heap::trim();
        code::release();
        self.settle();
    }

    /// Which blocks the coming pass keeps.
    pub fn pins_wanted(&self, reel: &Reel) -> Keep {
        let Reel { plan, pins, .. } = reel;
        if self.room.pressure.get() > Pressure::None {
            return Keep::default();
        }
        let reserve = self.room.ledger.budget_bytes() / UNPINNED_SHARE;
        // Texts that are kept lie within what pins leave to others.
        let there = self.room.ledger.unclaimed_bytes() + self.room.texts.bytes().min(reserve);
        let spare = there.saturating_sub(reserve).min(self.room.ledger.unclaimed_bytes());
        let wanted = plan.pin_bytes.saturating_sub(pins.bytes());
        // What others came to need since the budget was set is not ours.
        let room = memory::machine().map_or(u64::MAX, MachineMemory::spare_bytes);
        let keep = pins.plan(spare.min(wanted).min(room), plan.pins);
        if pins.coming_bytes() > 0 {
            // What passes have left in the heap is free by the ledger, and about to be used.
            heap::trim();
        }
        keep
    }

    /// Lets the heap keep the freed tensors of a pass that was granted so much, and three times as much
    /// of what is free: those of all sizes find the next of their size in up to four times the room
    /// that those in use take at once.
    pub fn keep_freed(&self, granted_bytes: u64) -> Option<Grant> {
        let spare_bytes = (3 * granted_bytes).min(self.room.ledger.unclaimed_bytes() / SPARE_SHARE);
        let spare = self.room.ledger.try_grant(Category::Activations, spare_bytes).ok();
        heap::keep_within(granted_bytes + spare.as_ref().map_or(0, Grant::bytes));
        spare
    }
}

/// The window that suits a budget: the default, or half of what is left where that is less.
fn window_for(ledger: &Ledger) -> u64 {
    WINDOW_BYTES.min((ledger.free_bytes() / 2).max(SMALLEST_WINDOW_BYTES))
}
