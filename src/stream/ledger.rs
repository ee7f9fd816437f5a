//! The ledger: every byte the process holds, and the budget none may exceed.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Code, stacks, the allocator's own, everything there before a model is loaded.
    Process,
    /// Loaded graphs.
    Graph,
    /// Tokenizers.
    Tokenizer,
    /// Blocks that stay.
    Pins,
    /// The window.
    Window,
    /// What passes compute with.
    Activations,
    /// Keys and values of texts that are generated, and what their passes compute with.
    Session,
    /// Memory of such that is kept between passes.
    Kept,
    /// Requests and replies.
    Request,
}

impl Category {
    /// Every category, in the order of reports.
    pub const ALL: [Category; 9] = [
        Category::Process,
        Category::Graph,
        Category::Tokenizer,
        Category::Pins,
        Category::Window,
        Category::Activations,
        Category::Session,
        Category::Kept,
        Category::Request,
    ];

    /// Its name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Category::Process => "process",
            Category::Graph => "graph",
            Category::Tokenizer => "tokenizer",
            Category::Pins => "pins",
            Category::Window => "window",
            Category::Activations => "activations",
            Category::Session => "session",
            Category::Kept => "kept",
            Category::Request => "request",
        }
    }
}

/// A grant that was refused, with the numbers.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "{what}: {need_bytes} bytes are needed, {free_bytes} of the budget of {budget_bytes} are free\n{advice}",
    what = .category.name(),
    advice = self.advice()
)]
pub struct OverBudget {
    pub category: Category,
    pub need_bytes: u64,
    pub free_bytes: u64,
    pub budget_bytes: u64,
    /// Held in all.
    pub held_bytes: u64,
    /// Held for as long as the process lives: for itself and for the window.
    pub fixed_bytes: u64,
    /// Held by whoever asks, and as long as it needs what it asks for.
    pub own_bytes: u64,
    /// A budget that what comes after this takes in any case.
    pub least_bytes: u64,
}

/// What a process and its graphs come to hold differs by this much from one start to the next: seen,
/// 140 KiB. A budget that is named has room for it.
pub const MARGIN_BYTES: u64 = 256 << 10;

impl OverBudget {
    /// Whether it would be granted if all were given back that can be.
    pub fn can_fit(&self) -> bool {
        self.smallest_budget_bytes() <= self.budget_bytes
    }

    /// The smallest budget that would have granted it, once all was given back that can be.
    pub fn smallest_budget_bytes(&self) -> u64 {
        let bytes = [self.fixed_bytes, self.own_bytes, self.need_bytes];
        bytes.into_iter().fold(0, u64::saturating_add).max(self.least_bytes)
    }

    /// The budget that is named where this one does not do.
    pub fn named_budget_bytes(&self) -> u64 {
        self.smallest_budget_bytes().saturating_add(MARGIN_BYTES)
    }

    /// The same for somebody who holds so many bytes besides, as long as it needs this.
    pub fn beside(self, more_bytes: u64) -> OverBudget {
        OverBudget { own_bytes: self.own_bytes.saturating_add(more_bytes), ..self }
    }

    /// The same where so many of the fixed bytes can be given back after all.
    pub fn without(self, fixed_bytes: u64) -> OverBudget {
        OverBudget { fixed_bytes: self.fixed_bytes.saturating_sub(fixed_bytes), ..self }
    }

    /// The same where what comes after it takes a budget of so many bytes.
    pub fn at_least(self, budget_bytes: u64) -> OverBudget {
        OverBudget { least_bytes: self.least_bytes.max(budget_bytes), ..self }
    }

    fn advice(&self) -> String {
        match self.can_fit() {
            true => "others hold what is missing, and will give it back".to_string(),
            false => format!(
                "a budget of {} would do: give --budget at least that, or make the window or \
                 the request smaller",
                self.named_budget_bytes()
            ),
        }
    }
}

/// The count of every byte held, by category, under one budget.
#[derive(Debug)]
pub struct Ledger {
    counts: Mutex<Counts>,
    returned: Condvar,
}

#[derive(Debug)]
struct Counts {
    budget_bytes: u64,
    /// By category.
    held: [u64; Category::ALL.len()],
    /// How often bytes were given back.
    returns: u64,
    /// Threads that wait for that.
    waiting: usize,
    /// What is waited for.
    claimed_bytes: u64,
}

impl Counts {
    fn held_bytes(&self) -> u64 {
        self.held.iter().sum()
    }

    /// Nothing where a budget that has become smaller is still exceeded.
    fn free_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.held_bytes())
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new(budget_bytes: u64) -> Arc<Ledger> {
        let counts = Counts {
            budget_bytes,
            held: Default::default(),
            returns: 0,
            waiting: 0,
            claimed_bytes: 0,
        };
        Arc::new(Ledger { counts: Mutex::new(counts), returned: Condvar::new() })
    }

    /// The limit in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.lock().budget_bytes
    }

    /// Changes the limit and returns the one before. What is held above it stays until it is given
    /// back, and nothing is granted meanwhile.
    pub fn set_budget(&self, bytes: u64) -> u64 {
        let mut counts = self.lock();
        self.tell(&mut counts);
        std::mem::replace(&mut counts.budget_bytes, bytes)
    }

    /// How often bytes were given back so far: for [`Ledger::wait_for_return`], to be asked before
    /// what is refused.
    pub fn returns(&self) -> u64 {
        self.lock().returns
    }

    /// Waits until bytes were given back more often than `returns`, for so long at most.
    pub fn wait_for_return(&self, returns: u64, patience: Duration) {
        let mut counts = self.lock();
        counts.waiting += 1;
        let is_unchanged = |counts: &mut Counts| counts.returns == returns;
        let waited = self.returned.wait_timeout_while(counts, patience, is_unchanged);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }

    fn give_back(&self, category: Category, bytes: u64) {
        let mut counts = self.lock();
        counts.held[category as usize] -= bytes;
        self.tell(&mut counts);
    }

    /// There may be more room than there was.
    fn tell(&self, counts: &mut Counts) {
        counts.returns += 1;
        if counts.waiting > 0 {
            self.returned.notify_all();
        }
    }

    /// Bytes held for `category`.
    pub fn held_bytes(&self, category: Category) -> u64 {
        self.lock().held[category as usize]
    }

    /// Bytes held in all.
    pub fn held_in_all_bytes(&self) -> u64 {
        self.lock().held_bytes()
    }

    /// Bytes of the budget that nobody holds.
    pub fn free_bytes(&self) -> u64 {
        self.lock().free_bytes()
    }

    /// The same but what somebody waits for: whoever can do with less leaves that alone.
    pub fn unclaimed_bytes(&self) -> u64 {
        let counts = self.lock();
        counts.free_bytes().saturating_sub(counts.claimed_bytes)
    }

    /// Bytes that are waited for, and those of them that are not free.
    pub fn claimed_bytes(&self) -> (u64, u64) {
        let counts = self.lock();
        (counts.claimed_bytes, counts.claimed_bytes.saturating_sub(counts.free_bytes()))
    }

    /// Tells that somebody waits for so much, as long as the claim is there.
    pub fn claim(self: &Arc<Ledger>, bytes: u64) -> Claim {
        self.lock().claimed_bytes += bytes;
        Claim { ledger: Arc::clone(self), bytes }
    }

    /// Whether more is held than a budget that has become smaller.
    pub fn is_exceeded(&self) -> bool {
        let counts = self.lock();
        counts.held_bytes() > counts.budget_bytes
    }

    /// Grants `bytes`, to be allocated only after this returned.
    pub fn try_grant(
        self: &Arc<Ledger>,
        category: Category,
        bytes: u64,
    ) -> Result<Grant, OverBudget> {
        self.add(category, bytes)?;
        Ok(Grant { ledger: Arc::clone(self), category, bytes })
    }

    fn add(&self, category: Category, bytes: u64) -> Result<(), OverBudget> {
        let mut counts = self.lock();
        let (free_bytes, held) = (counts.free_bytes(), &counts.held);
        if bytes > free_bytes {
            return Err(OverBudget {
                category,
                need_bytes: bytes,
                free_bytes,
                budget_bytes: counts.budget_bytes,
                held_bytes: counts.held_bytes(),
                fixed_bytes: held[Category::Process as usize] + held[Category::Window as usize],
                own_bytes: 0,
                least_bytes: 0,
            });
        }
        counts.held[category as usize] += bytes;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Every update is one addition: a panic elsewhere leaves the counts true.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that somebody waits for; dropping it ends that.
#[derive(Debug)]
pub struct Claim {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut counts = self.ledger.lock();
        counts.claimed_bytes -= self.bytes;
        self.ledger.tell(&mut counts);
    }
}

/// Bytes held; dropping it gives them back.
#[derive(Debug)]
pub struct Grant {
    ledger: Arc<Ledger>,
    category: Category,
    bytes: u64,
}

impl Grant {
    /// Bytes granted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` out as a grant of their own; all there is where it is less.
    pub fn split(&mut self, bytes: u64) -> Grant {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Grant { ledger: Arc::clone(&self.ledger), category: self.category, bytes }
    }

    /// The same bytes, held for something else from now on.
    pub fn turn_into(&mut self, category: Category) {
        let mut counts = self.ledger.lock();
        counts.held[self.category as usize] -= self.bytes;
        counts.held[category as usize] += self.bytes;
        self.category = category;
    }

    /// Changes the grant to `bytes`; growing may be refused, which leaves it as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), OverBudget> {
        if bytes > self.bytes {
            let more = self.ledger.add(self.category, bytes - self.bytes);
            more.map_err(|refused| refused.beside(self.bytes))?;
        } else {
            self.ledger.give_back(self.category, self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.ledger.give_back(self.category, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    proptest! {
        /// Grants by chance, beside a list of them: what is granted fits the budget of that moment,
        /// what is refused would not have, and every figure is the list's.
        #[test]
        fn what_is_granted_fits_and_what_is_refused_would_not(
            budget in 0u64..400,
            steps in prop::collection::vec((0..6, any::<prop::sample::Index>(), 0u64..200), 0..80),
        ) {
            let ledger = Ledger::new(budget);
            let (mut budget, mut grants) = (budget, Vec::<Grant>::new());
            let sum = |grants: &[Grant]| grants.iter().map(Grant::bytes).sum::<u64>();
            for (step, which, bytes) in steps {
                let held = sum(&grants);
                let category = *which.get(&Category::ALL);
                let free = budget.saturating_sub(held);
                if step == 0 || grants.is_empty() {
                    match ledger.try_grant(category, bytes) {
                        Ok(grant) => grants.push(grant),
                        Err(refused) => {
                            prop_assert!(bytes > free);
                            let told = (refused.need_bytes, refused.free_bytes);
                            prop_assert_eq!(told, (bytes, free));
                            let told = (refused.held_bytes, refused.budget_bytes);
                            prop_assert_eq!(told, (held, budget));
                        }
                    }
                    prop_assert!(sum(&grants) <= held.max(budget));
                    continue;
                }
                let index = which.index(grants.len());
                let before = grants[index].bytes();
                match step {
                    1 => drop(grants.swap_remove(index)),
                    2 => {
                        let resized = grants[index].resize(bytes).is_ok();
                        let more = bytes.saturating_sub(before);
                        prop_assert_eq!(resized, bytes <= before || more <= free);
                        let expected = if resized { bytes } else { before };
                        prop_assert_eq!(grants[index].bytes(), expected);
                    }
                    3 => {
                        let part = grants[index].split(bytes);
                        prop_assert_eq!(part.bytes(), bytes.min(before));
                        grants.push(part);
                        prop_assert_eq!(sum(&grants), held);
                    }
                    4 => grants[index].turn_into(category),
                    _ => {
                        prop_assert_eq!(ledger.set_budget(2 * bytes), budget);
                        budget = 2 * bytes;
                    }
                }
                for category in Category::ALL {
                    let own = grants.iter().filter(|grant| grant.category == category);
                    let bytes: u64 = own.map(Grant::bytes).sum();
                    prop_assert_eq!(ledger.held_bytes(category), bytes);
                }
                let held = sum(&grants);
                prop_assert_eq!(ledger.held_in_all_bytes(), held);
                prop_assert_eq!(ledger.free_bytes(), budget.saturating_sub(held));
                prop_assert_eq!(ledger.is_exceeded(), held > budget);
            }
            drop(grants);
            prop_assert_eq!(ledger.held_in_all_bytes(), 0);
        }
    }

    /// Several threads take, change and give back at once; each counts what it has when it has it.
    #[test]
    fn threads_hold_no_more_than_the_budget_together() {
        const BUDGET: u64 = 1000;
        let (ledger, held) = (Ledger::new(BUDGET), AtomicU64::new(0));
        let granted = AtomicU64::new(0);
        let play = |seed: u64| {
            let (mut grants, mut random) = (Vec::<Grant>::new(), seed);
            for _ in 0..20_000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (what, bytes) = (random >> 62, (random >> 40) % 400);
                let category = Category::ALL[(random >> 33) as usize % Category::ALL.len()];
                let index = (random >> 50) as usize % grants.len().max(1);
                let Some(grant) = grants.get_mut(index).filter(|_| what > 0) else {
                    if let Ok(grant) = ledger.try_grant(category, bytes) {
                        let before = held.fetch_add(bytes, Ordering::SeqCst);
                        assert!(before + bytes <= BUDGET, "{before} and {bytes}");
                        granted.fetch_add(1, Ordering::Relaxed);
                        grants.push(grant);
                    }
                    continue;
                };
                grant.turn_into(category);
                match what {
                    1 => {
                        let part = grant.split(bytes);
                        held.fetch_sub(part.bytes(), Ordering::SeqCst);
                    }
                    2 if bytes <= grant.bytes() => {
                        held.fetch_sub(grant.bytes() - bytes, Ordering::SeqCst);
                        grant.resize(bytes).unwrap();
                    }
                    2 => {
                        let more = bytes - grant.bytes();
                        if grant.resize(bytes).is_ok() {
                            let before = held.fetch_add(more, Ordering::SeqCst);
                            assert!(before + more <= BUDGET, "{before} and {more}");
                        }
                    }
                    _ => {
                        held.fetch_sub(grant.bytes(), Ordering::SeqCst);
                        grants.swap_remove(index);
                    }
                }
            }
            let left: u64 = grants.iter().map(Grant::bytes).sum();
            held.fetch_sub(left, Ordering::SeqCst);
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || play(seed)))));
        assert_eq!((held.into_inner(), ledger.held_in_all_bytes()), (0, 0));
        assert!(granted.into_inner() > 1000, "little was granted");
    }

    /// What is fixed is the process's and the window's; all else can be given back.
    #[test]
    fn what_can_never_fit_is_told_from_what_may_later() {
        let ledger = Ledger::new(100);
        let fixed = [(Category::Process, 20), (Category::Window, 10)];
        let _fixed = fixed.map(|(category, bytes)| ledger.try_grant(category, bytes).unwrap());
        let _pins = ledger.try_grant(Category::Pins, 50).unwrap();
        let refused = |bytes| ledger.try_grant(Category::Tokenizer, bytes).unwrap_err();
        assert!(refused(70).can_fit());
        assert!(!refused(71).can_fit());
        assert_eq!(refused(71).smallest_budget_bytes(), 101);
        assert_eq!(refused(60).beside(11).smallest_budget_bytes(), 101);
        assert_eq!(refused(60).at_least(200).smallest_budget_bytes(), 200);
        let told = refused(70).to_string();
        assert!(told.ends_with("others hold what is missing, and will give it back"), "{told}");
    }

    /// An embeddings request that held 20 of 100 bytes, and wanted as much again as was free once
    /// all was given back, was told to try again for ever.
    #[test]
    fn what_a_grant_holds_itself_does_not_come_free() {
        let ledger = Ledger::new(100);
        let _process = ledger.try_grant(Category::Process, 20).unwrap();
        let mut body = ledger.try_grant(Category::Request, 20).unwrap();
        let refused = body.resize(81).unwrap_err();
        assert_eq!((refused.can_fit(), refused.smallest_budget_bytes()), (false, 101));
        let _pins = ledger.try_grant(Category::Pins, 30).unwrap();
        assert!(body.resize(80).unwrap_err().can_fit());
    }

    #[test]
    fn the_sum_never_exceeds_the_budget() {
        let ledger = Ledger::new(100);
        let window = ledger.try_grant(Category::Window, 60).unwrap();
        let mut request = ledger.try_grant(Category::Request, 30).unwrap();
        let refused = ledger.try_grant(Category::Graph, 11).unwrap_err();
        assert_eq!((refused.need_bytes, refused.free_bytes), (11, 10));
        assert!(refused.can_fit(), "the request's bytes come back");
        let refused = ledger.try_grant(Category::Graph, 41).unwrap_err();
        assert_eq!(refused.smallest_budget_bytes(), 101);
        let told = "graph: 41 bytes are needed, 10 of the budget of 100 are free\na budget of 262245 would do";
        assert!(refused.to_string().starts_with(told), "{refused}");
        assert!(request.resize(41).is_err());
        assert_eq!((request.bytes(), ledger.held_bytes(Category::Request)), (30, 30));
        request.resize(40).unwrap();
        assert_eq!(ledger.free_bytes(), 0);
        let part = request.split(15);
        assert_eq!((part.bytes(), request.bytes(), ledger.free_bytes()), (15, 25, 0));
        let mut part = part;
        part.turn_into(Category::Pins);
        let held = [Category::Request, Category::Pins].map(|category| ledger.held_bytes(category));
        assert_eq!((held, ledger.free_bytes()), ([25, 15], 0));
        drop(part);
        assert_eq!(ledger.free_bytes(), 15);
        request.resize(0).unwrap();
        drop(window);
        drop(request);
        assert_eq!(ledger.free_bytes(), 100);
    }

    /// Who waits for room is woken by what is given back, also between the refusal and the waiting.
    #[test]
    fn what_is_given_back_wakes_who_waits_for_it() {
        const FOREVER: Duration = Duration::from_secs(600);
        let ledger = Ledger::new(100);
        let held = ledger.try_grant(Category::Pins, 80).unwrap();
        let returns = ledger.returns();
        assert!(ledger.try_grant(Category::Tokenizer, 30).is_err());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(held));
            ledger.wait_for_return(returns, FOREVER);
        });
        ledger.try_grant(Category::Tokenizer, 30).unwrap();
        ledger.wait_for_return(returns, FOREVER);
        ledger.wait_for_return(ledger.returns(), Duration::ZERO);
    }

    /// Passes that follow each other took whatever was free with more seats, so that a body of 256
    /// KiB found no room for five seconds.
    #[test]
    fn what_is_waited_for_is_free_and_not_for_everybody() {
        let ledger = Ledger::new(100);
        let mut held = ledger.try_grant(Category::Activations, 80).unwrap();
        let claims = [30, 50].map(|bytes| ledger.claim(bytes));
        assert_eq!((ledger.free_bytes(), ledger.unclaimed_bytes()), (20, 0));
        assert_eq!(ledger.claimed_bytes(), (80, 60));
        held.resize(10).unwrap();
        assert_eq!((ledger.free_bytes(), ledger.unclaimed_bytes()), (90, 10));
        let _granted = ledger.try_grant(Category::Request, 50).unwrap();
        drop(claims);
        assert_eq!((ledger.free_bytes(), ledger.unclaimed_bytes()), (40, 40));
    }

    #[test]
    fn a_smaller_budget_takes_nothing_away_and_grants_nothing() {
        let ledger = Ledger::new(100);
        let mut pins = ledger.try_grant(Category::Pins, 80).unwrap();
        assert_eq!(ledger.set_budget(50), 100);
        assert!(ledger.is_exceeded());
        assert_eq!((ledger.held_in_all_bytes(), ledger.free_bytes()), (80, 0));
        let refused = ledger.try_grant(Category::Graph, 1).unwrap_err();
        assert_eq!((refused.free_bytes, refused.can_fit()), (0, true));
        assert!(pins.resize(81).is_err());
        pins.resize(30).unwrap();
        assert!(!ledger.is_exceeded());
        assert!(ledger.try_grant(Category::Graph, 21).is_err());
        drop(ledger.try_grant(Category::Graph, 20).unwrap());
        assert_eq!(ledger.set_budget(200), 50);
        assert_eq!(ledger.free_bytes(), 170);
    }
}
