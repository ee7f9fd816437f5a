//! What may be held when: the one place that grants, and says who gives way: pins first, then what
//! was used longest ago.

mod hold;

pub(super) use hold::{Hold, PATIENCE};

use super::catalogue::Catalogue;
use super::command::Command;
use super::error::EngineError;
use super::inbox::Inbox;
use super::keepers::{Keeper, Keepers};
use super::model::Model;
use super::needs::{SMALLEST_WINDOW_BYTES, WINDOW_BYTES};
use super::pressure::{Pressure, SharedPressure};
use super::request::{Cancel, Waiting};
use super::residents::Residents;
use super::sessions::Sessions;
use super::stats::Pulse;
use super::step::Tenancy;
use super::texts::Texts;
use crate::stream::{Category, Grant, Ledger, OverBudget};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for room that others will give back. What holds it are passes, and replies that
/// clients take.
pub const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// Time after which it is asked whether anybody still waits, and what is idle now.
pub const TICK: Duration = Duration::from_millis(50);

/// The ledger, and all that can give way.
pub struct Room {
    pub(super) ledger: Arc<Ledger>,
    pub(super) residents: Residents,
    pub(super) keepers: Keepers,
    pub(super) catalogue: Catalogue,
    pub(super) pressure: SharedPressure,
    /// What is waited for goes later.
    pub(super) inbox: Inbox,
    pub(super) pulse: Pulse,
    pub(super) sessions: Arc<Sessions>,
    pub(super) texts: Texts,
    /// Of the last pass; before the first, what suits the budget.
    pub(super) window_bytes: AtomicU64,
    /// For freed tensors that are kept between passes.
    shelf: Mutex<Option<Grant>>,
}

/// What may go next.
enum Oldest {
    Model(String),
    Kept(Arc<dyn Keeper>),
}

impl Room {
    /// An empty one within a budget.
    pub fn new(budget_bytes: u64) -> Room {
        Room {
            ledger: Ledger::new(budget_bytes),
            residents: Residents::default(),
            keepers: Keepers::default(),
            catalogue: Catalogue::default(),
            pressure: SharedPressure::default(),
            inbox: Inbox::default(),
            pulse: Pulse::default(),
            sessions: Arc::default(),
            texts: Texts::default(),
            window_bytes: AtomicU64::default(),
            shelf: Mutex::default(),
        }
    }

    /// Lets freed tensors be kept for the next pass, up to so many bytes, as far as there is room for
    /// them, and until somebody needs it.
    pub(super) fn shelve(&self, bytes: u64) {
        heap::keep_within(bytes);
        let shelf = self.ledger.try_grant(Category::Kept, heap::kept_bytes()).ok();
        heap::keep_within(shelf.as_ref().map_or(0, Grant::bytes));
        *lock(&self.shelf) = shelf;
    }

    /// Gives back what was granted for them, which stay: they are for whoever is granted it now.
    pub(super) fn unshelve(&self) {
        *lock(&self.shelf) = None;
    }

    /// Lets them go; whether there were any.
    fn clear_shelf(&self) -> bool {
        let shelf = lock(&self.shelf).take().filter(|shelf| shelf.bytes() > 0);
        if shelf.is_some() {
            heap::keep_within(0);
        }
        shelf.is_some()
    }

    /// Frees memory that another use needs more: what is kept for the next pass and the next text,
    /// then pins, those of other models before those of `name`, then whatever was used longest ago of
    /// what nobody uses or waits for, but the model `name`. A model goes before its tokenizer, which
    /// takes longer to come back. False where nothing of that is left.
    pub fn spare_room(&self, name: &str) -> bool {
        // Whoever asks may be measured, and did not allocate this.
        heap::unmetered(|| self.spare(name))
    }

    fn spare(&self, name: &str) -> bool {
        if self.clear_shelf() {
            return true;
        }
        if self.texts.give_way() {
            heap::trim();
            return true;
        }
        let models = self.residents.all();
        let (own, others): (Vec<_>, Vec<_>) = models.iter().partition(|m| m.name() == name);
        if others.iter().map(|model| model.unpin()).fold(false, |any, had| any | had) {
            return true;
        }
        if own.iter().any(|model| model.unpin()) {
            return true;
        }
        let waited_for = self.inbox.models();
        let idle = others.into_iter().filter(|m| is_idle(m) && !waited_for.contains(m.name()));
        let idle = idle.map(|model| (model.last_use(), Oldest::Model(model.name().to_string())));
        let loaded = models.iter().map(|model| model.name().to_string());
        let spared = waited_for.iter().cloned().chain(loaded).collect();
        let kept = self.keepers.all().into_iter();
        let kept = kept.filter_map(|kept| Some((kept.oldest(&spared)?, Oldest::Kept(kept))));
        let oldest = idle.chain(kept).min_by_key(|(used, _)| *used).map(|(_, oldest)| oldest);
        drop(models);
        let gave = match oldest {
            None => self.catalogue.give_way(),
            Some(Oldest::Kept(keeper)) => keeper.give_way(&spared),
            Some(Oldest::Model(other)) => self.let_go(&other),
        };
        if gave {
            heap::trim();
        }
        gave
    }

    /// The same for what cannot wait: at last models go that requests only wait for, and tokenizers
    /// of models in use.
    pub fn make_room(&self, name: &str) -> bool {
        if self.spare_room(name) {
            return true;
        }
        heap::unmetered(|| {
            let models = self.residents.all();
            let idle = models.iter().filter(|model| model.name() != name && is_idle(model));
            let oldest = idle.min_by_key(|m| m.last_use()).map(|model| model.name().to_string());
            drop(models);
            let gave = oldest.is_some_and(|other| self.let_go(&other)) || {
                let none = BTreeSet::new();
                self.keepers.all().iter().any(|keeper| keeper.give_way(&none))
            };
            heap::trim();
            gave
        })
    }

    /// Unloads a model for the memory; whether it was loaded.
    fn let_go(&self, model: &str) -> bool {
        let was_loaded = self.residents.remove(model);
        self.texts.forget(model);
        if was_loaded {
            log::info!("model {model} is unloaded: its memory is needed");
        }
        was_loaded
    }

    /// Bytes that nothing gives back while the loaded models stay, with the smallest window that
    /// they can do with.
    pub fn least_bytes(&self) -> u64 {
        let fixed = [Category::Process, Category::Graph, Category::Tokenizer];
        let fixed_bytes: u64 = fixed.map(|category| self.ledger.held_bytes(category)).iter().sum();
        let windows = self.residents.each(|model| model.reel().smallest_window_bytes());
        let usual = SMALLEST_WINDOW_BYTES.min(self.window_bytes.load(Ordering::Relaxed));
        fixed_bytes + windows.into_iter().max().unwrap_or(usual)
    }

    /// Changes the budget; where it is smaller, pins go at once. The old one stays where less is asked
    /// for than nothing gives back.
    pub fn set_budget(&self, budget_bytes: u64) -> Result<(), EngineError> {
        let least_bytes = self.least_bytes();
        if budget_bytes < least_bytes {
            return Err(EngineError::BudgetTooSmall { budget_bytes, least_bytes });
        }
        if budget_bytes < self.ledger.set_budget(budget_bytes) {
            self.residents.unpin();
            self.texts.clear();
        }
        self.inbox.command(Command::Replan);
        Ok(())
    }

    /// Follows a level of memory pressure; whether it is another one than before.
    pub fn set_pressure(&self, level: Pressure) -> bool {
        let before = self.pressure.set(level);
        if before == level {
            return false;
        }
        if before == Pressure::None {
            self.residents.unpin();
            self.texts.clear();
            // What a trial holds goes too.
            self.inbox.end_leisure();
        }
        self.inbox.hold(level >= Pressure::Hold);
        true
    }

    /// Unloads a model; whether it was loaded.
    pub fn unload(&self, name: &str) -> bool {
        let was_loaded = self.residents.remove(name);
        self.keepers.forget(name);
        self.catalogue.forget(name);
        self.texts.forget(name);
        heap::trim();
        if was_loaded {
            log::info!("model {name} is unloaded");
        }
        was_loaded
    }

    /// Ends sessions whose next step is one of a model that is not loaded any more.
    pub(super) fn end_strays(&self, name: &str) {
        let model = self.residents.get(name);
        let is_of =
            |tenancy: &Tenancy| model.as_ref().is_some_and(|model| model.tenancy.is(tenancy));
        let is_stray = |waiting: &Waiting| {
            let step = waiting.step().filter(|_| waiting.request.model == name);
            step.is_some_and(|step| !is_of(&step.tenancy))
        };
        for waiting in self.inbox.remove(is_stray) {
            waiting.refuse(gone(name, model.as_deref()));
        }
    }

    /// A grant for whoever tries again where it is refused: before it is, what nobody uses or waits
    /// for gives way.
    pub fn grant(&self, category: Category, bytes: u64) -> Result<Grant, OverBudget> {
        loop {
            match self.ledger.try_grant(category, bytes) {
                Err(refused) if refused.can_fit() && self.spare_room("") => {}
                granted => return granted,
            }
        }
    }

    /// A grant for whoever can wait; as [`Room::enlarge_in_time`].
    pub fn grant_in_time(
        &self,
        category: Category,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<Grant, OverBudget> {
        let mut grant = self.ledger.try_grant(category, 0)?;
        self.enlarge_in_time(&mut grant, bytes, own_bytes, cancel)?;
        Ok(grant)
    }

    /// Changes the grant of whoever holds `own_bytes` besides; before it is refused, all gives way
    /// that can.
    pub fn enlarge(&self, grant: &mut Grant, bytes: u64, own_bytes: u64) -> Result<(), OverBudget> {
        loop {
            let Err(refused) = grant.resize(bytes) else { return Ok(()) };
            let refused = self.judged(refused.beside(own_bytes));
            if !refused.can_fit() || !self.make_room("") {
                return Err(refused);
            }
        }
    }

    /// Has the window give way, as soon as no pass needs it, to those who wait for room and have told
    /// so by a claim.
    pub fn narrow(&self) {
        self.inbox.command(Command::Narrow);
    }

    /// Names a budget that does where this one does not: the window takes its part of a larger one.
    fn judged(&self, refused: OverBudget) -> OverBudget {
        if refused.can_fit() {
            return refused;
        }
        let bytes = refused.own_bytes.saturating_add(refused.need_bytes);
        let window_bytes = bytes.clamp(SMALLEST_WINDOW_BYTES, WINDOW_BYTES);
        let process_bytes = self.ledger.held_bytes(Category::Process);
        refused.at_least(process_bytes.saturating_add(bytes).saturating_add(window_bytes))
    }

    /// The same for somebody who can wait, unless `cancel` is: what does not fit now, and would in
    /// an idle daemon, waits for what others give back before anything in use gives way.
    pub fn enlarge_in_time(
        &self,
        grant: &mut Grant,
        bytes: u64,
        own_bytes: u64,
        cancel: &Cancel,
    ) -> Result<(), OverBudget> {
        let mut wait = Wait::new(LONG_PATIENCE);
        let mut claim = None;
        loop {
            let returns = self.ledger.returns();
            let Err(refused) = grant.resize(bytes) else { return Ok(()) };
            let need_bytes = refused.need_bytes;
            let refused = self.judged(refused.beside(own_bytes));
            if refused.can_fit() {
                claim.get_or_insert_with(|| self.ledger.claim(need_bytes));
                if self.spare_room("") {
                    continue;
                }
                self.narrow();
            }
            if !wait.goes_on(self, &refused, returns, cancel) {
                return match cancel.is_cancelled() {
                    true => Err(refused),
                    false => self.enlarge(grant, bytes, own_bytes),
                };
            }
        }
    }
}

/// Why a session goes on no more, where this is loaded in the place of its model.
pub(super) fn gone(name: &str, model: Option<&Model>) -> EngineError {
    let name = name.to_string();
    match model {
        None => EngineError::Unloaded { model: name },
        Some(other) => {
            let version = other.dir.manifest.version.clone();
            EngineError::Replaced { model: name, version }
        }
    }
}

/// Whether nobody uses a model but the list of models and the caller's.
fn is_idle(model: &Arc<Model>) -> bool {
    Arc::strong_count(model) <= 2 && !model.tenancy.is_used()
}

/// A wait for what others will give back.
pub(super) struct Wait {
    end: Instant,
}

impl Wait {
    /// One that ends after so long.
    pub fn new(patience: Duration) -> Wait {
        Wait { end: Instant::now() + patience }
    }

    /// Waits for a moment, until bytes are given back after the ledger counted so many `returns`.
    /// False at once where what was refused would never fit, and at the end of all patience.
    pub fn goes_on(
        &mut self,
        room: &Room,
        refused: &OverBudget,
        returns: u64,
        cancel: &Cancel,
    ) -> bool {
        let is_over = cancel.is_cancelled() || room.pulse.stopping.is_cancelled();
        if is_over || !refused.can_fit() || Instant::now() >= self.end {
            return false;
        }
        room.ledger.wait_for_return(returns, TICK);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Array, Config, Engine, Pressure, Request};
    use super::*;
    use crate::store::Dtype;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const MIB: u64 = 1 << 20;

    /// Keeps something of models, tells when it is asked, and gives way in its order.
    struct Shelf {
        kept: Mutex<Vec<&'static str>>,
        asked: Sender<()>,
    }

    impl Shelf {
        fn of(kept: &[&'static str], engine: &Engine) -> (Arc<Shelf>, Receiver<()>) {
            let (asked, is_asked) = channel();
            let shelf = Arc::new(Shelf { kept: Mutex::new(kept.to_vec()), asked });
            let keeper: Arc<dyn Keeper> = Arc::clone(&shelf) as _;
            engine.add_keeper(Arc::downgrade(&keeper));
            (shelf, is_asked)
        }

        fn place(&self, spared: &BTreeSet<String>) -> Option<usize> {
            let _ = self.asked.send(());
            lock(&self.kept).iter().position(|of| !spared.contains(*of))
        }
    }

    impl Keeper for Shelf {
        fn oldest(&self, spared: &BTreeSet<String>) -> Option<u64> {
            self.place(spared).map(|place| place as u64)
        }

        fn give_way(&self, spared: &BTreeSet<String>) -> bool {
            let place = self.place(spared);
            place.map(|place| lock(&self.kept).remove(place)).is_some()
        }

        fn forget(&self, _: &str) {}
    }

    fn engine(store: &tempfile::TempDir) -> Engine {
        Engine::start(Config::new(store.path(), 256 * MIB)).unwrap()
    }

    /// The tokenizer of the model that everybody used was let go when it was idle for a moment: of
    /// 15,969 right requests 313 found no room for its next load.
    #[test]
    fn what_is_of_a_model_in_use_goes_last() {
        let store = tempfile::tempdir().unwrap();
        let engine = engine(&store);
        engine.set_pressure(Pressure::Hold);
        let inputs = vec![("x".to_string(), Array::new(Dtype::Bool, vec![1], vec![1]).unwrap())];
        let (model, cancel) = ("used".to_string(), Cancel::new());
        engine.submit(
            Request { model, inputs, outputs: vec![], cancel, target: None, trace: None },
            drop,
        );
        let (shelf, _asked) = Shelf::of(&["used", "other", "unused"], &engine);
        let left = || lock(&shelf.kept).clone();
        let shared = engine.room();
        assert!(shared.spare_room(""));
        assert_eq!(left(), ["used", "unused"]);
        assert!(shared.make_room("") && !shared.spare_room(""));
        assert_eq!(left(), ["used"], "the process's own needs do not cost it");
        assert!(shared.make_room("") && !shared.make_room(""));
        assert!(left().is_empty());
    }

    /// A tokenizer whose load did not fit while passes ran was refused with 503, although a moment
    /// later it would have fitted. Who has left, and what never fits, waits for nothing.
    #[test]
    fn what_fits_an_idle_daemon_waits_for_room() {
        let store = tempfile::tempdir().unwrap();
        let engine = engine(&store);
        let (_shelf, asked) = Shelf::of(&[], &engine);
        let shared = engine.room();
        let ledger = Arc::clone(&shared.ledger);
        let held = ledger.try_grant(Category::Activations, ledger.free_bytes() - MIB).unwrap();
        let mut grant = ledger.try_grant(Category::Tokenizer, MIB).unwrap();
        let never = Cancel::new();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                asked.recv().unwrap();
                drop(held);
            });
            shared.enlarge_in_time(&mut grant, 2 * MIB, 0, &never).unwrap();
        });
        let left = Cancel::new();
        left.cancel();
        let _held = ledger.try_grant(Category::Activations, ledger.free_bytes()).unwrap();
        let refused = shared.enlarge_in_time(&mut grant, 3 * MIB, 0, &left).unwrap_err();
        assert!(refused.can_fit());
        let refused = shared.enlarge_in_time(&mut grant, 257 * MIB, 0, &never).unwrap_err();
        assert!(!refused.can_fit());
    }

    /// A text that waits between two passes waited for the window, which had taken all that was free:
    /// nobody gave that back, and it was broken off with 503.
    #[test]
    fn the_window_gives_way_to_who_waits_for_room() {
        let store = tempfile::tempdir().unwrap();
        let engine = engine(&store);
        let room = engine.room();
        let window_bytes = room.ledger.held_bytes(Category::Window);
        let free_bytes = room.ledger.free_bytes();
        let _held = room.ledger.try_grant(Category::Activations, free_bytes).unwrap();
        let granted = room.grant_in_time(Category::Request, MIB, 0, &Cancel::new()).unwrap();
        assert_eq!(granted.bytes(), MIB);
        assert_eq!(room.ledger.held_bytes(Category::Window), window_bytes - MIB);
    }
}
