//! Who is connected: a share of the connections for each user, and the end of an idle one where
//! somebody else needs its place.

use super::activity::Activity;
use crate::engine::QUEUE_LIMIT;
use crate::stream::{Category, Grant, Ledger};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// What the ledger is asked for a connection: its buffers and its task, 32 KiB in all but the worst
/// of moments, and what the kernel holds of replies.
pub const CONNECTION_BYTES: u64 = 64 << 10;

/// What the kernel holds, for a connection by a port, of what the client has sent and nobody has
/// taken yet; that of a Unix socket is the client's.
pub const UNTAKEN_BYTES: usize = 64 << 10;

/// Connections by ports, at most: each brings a request at a time, and half of those that may wait
/// for a pass are left to the users of the socket.
const PORT_CONNECTIONS: usize = QUEUE_LIMIT / 2;

/// Connections granted at the start, so that the daemon can always say why it is busy; half of them
/// are for root and the daemon's own user alone.
pub const RESERVED_CONNECTIONS: usize = 8;

/// Time for which a connection must have been idle to end for another's sake, where that one can wait:
/// a client that asks one thing after the other does the next at any moment.
const IDLE_LEAST: Duration = Duration::from_secs(5);

/// Why a connection is not admitted.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct NotAdmitted {
    why: String,
    /// Whether others hold the memory for now: it is worth while to wait.
    pub may_pass: bool,
}

/// Who connects, as far as the shares go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root or the daemon's own user: neither a share nor the limit holds them off.
    Keeper,
    /// Another user.
    User(u32),
    /// Whoever comes by a port: all of them together are one user.
    Tcp,
    /// Somebody whom the kernel does not name.
    Unknown,
}

impl Who {
    /// What the ledger is asked for one connection.
    pub fn bytes(self) -> u64 {
        self.places() as u64 * CONNECTION_BYTES
    }

    /// Places that one connection takes, each of [`CONNECTION_BYTES`].
    fn places(self) -> usize {
        match self {
            Who::Tcp => 1 + UNTAKEN_BYTES.div_ceil(CONNECTION_BYTES as usize),
            Who::Keeper | Who::User(_) | Who::Unknown => 1,
        }
    }
}

/// What a connection's bytes are granted by: the reserve where it has no grant of its own.
#[derive(Debug)]
struct GrantedPlace {
    is_reserved: bool,
    _grant: Option<Grant>,
}

/// A connection that is open.
#[derive(Debug)]
struct OpenConnection {
    who: Who,
    activity: Arc<Activity>,
    /// Gone where the connection is to end for another's sake.
    place: Option<GrantedPlace>,
    number: u64,
}

/// The open connections.
#[derive(Debug)]
pub struct Connections {
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<OpenConnection>,
    /// Reserved places that are taken.
    reserved: usize,
    last_number: u64,
}

/// An open connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Admission {
    connections: Arc<Connections>,
    /// What it does, and what tells it to end.
    pub activity: Arc<Activity>,
    number: u64,
}

impl Connections {
    /// None yet. The reserved ones are granted elsewhere, for as long as the daemon serves.
    pub fn new(ledger: Arc<Ledger>) -> Arc<Connections> {
        Arc::new(Connections { ledger, state: Mutex::default() })
    }

    /// Admits one more where `limit` places may be taken, or says why not. Where the ledger has no room
    /// for it, only a connection that has been idle for long makes room.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted`].
    pub fn admit(
        self: &Arc<Connections>,
        who: Who,
        limit: usize,
    ) -> Result<Admission, NotAdmitted> {
        self.admit_for(who, limit, Instant::now().checked_sub(IDLE_LEAST))
    }

    /// The same where any idle connection makes room.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted`].
    pub fn admit_at_last(
        self: &Arc<Connections>,
        who: Who,
        limit: usize,
    ) -> Result<Admission, NotAdmitted> {
        self.admit_for(who, limit, Some(Instant::now()))
    }

    /// For want of memory, those make room that have been idle since `spare`.
    ///
    /// A user may have as many places as are free: the first half of all, the next half of the
    /// rest. Beyond that, the longest idle of the user's own makes room; for a user who has none,
    /// that of whoever has the most, but never a keeper's. Keepers have a few more than all, and
    /// then anybody's makes room.
    fn admit_for(
        self: &Arc<Connections>,
        who: Who,
        limit: usize,
        spare: Option<Instant>,
    ) -> Result<Admission, NotAdmitted> {
        let mut state = self.lock();
        let own = state.taken_by(who);
        let free = limit.saturating_sub(state.taken());
        let place = match who {
            Who::Keeper if state.taken() < limit + RESERVED_CONNECTIONS => {
                self.place(&mut state, RESERVED_CONNECTIONS)
            }
            Who::User(_) | Who::Unknown if own < free => {
                self.place(&mut state, RESERVED_CONNECTIONS / 2)
            }
            Who::Tcp if own + who.places() <= free.min(PORT_CONNECTIONS * who.places()) => {
                self.port_place()
            }
            _ => Err(NotAdmitted {
                why: format!("this user has {own} places for connections, {free} are free"),
                may_pass: false,
            }),
        };
        let place = place.or_else(|why| {
            let spare = if why.may_pass { spare } else { Some(Instant::now()) };
            let of_greatest = |state: &mut State| {
                let greatest = state.greatest_user();
                state.evict(spare, |of| Some(of) == greatest)
            };
            let evicted = match who {
                Who::Keeper => state.evict(spare, |_| true),
                _ if own > 0 => state.evict(spare, |of| of == who),
                // The other's place is smaller: nobody's ends where it would not do.
                Who::Tcp if self.ledger.free_bytes() < UNTAKEN_BYTES as u64 => None,
                Who::Tcp => of_greatest(&mut state).and_then(|place| {
                    state.give_back(place);
                    self.port_place().ok()
                }),
                _ => of_greatest(&mut state),
            };
            evicted.ok_or(why)
        })?;
        state.last_number += 1;
        let (number, activity) = (state.last_number, Arc::<Activity>::default());
        let entry =
            OpenConnection { who, activity: Arc::clone(&activity), place: Some(place), number };
        state.entries.push(entry);
        drop(state);
        Ok(Admission { connections: Arc::clone(self), activity, number })
    }

    /// Ends the connection that has been idle for longest, a keeper's at last, for its file
    /// descriptor's sake; whether there is one.
    pub fn end_one(&self) -> bool {
        let mut state = self.lock();
        let now = Some(Instant::now());
        let others = state.evict(now, |of| of != Who::Keeper);
        let evicted = others.or_else(|| state.evict(now, |_| true));
        match evicted {
            None => false,
            Some(place) => {
                state.give_back(place);
                true
            }
        }
    }

    /// Connections that are open.
    pub fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// A place of the `reserved` first, or one that the ledger grants.
    fn place(&self, state: &mut State, reserved: usize) -> Result<GrantedPlace, NotAdmitted> {
        if state.reserved < reserved {
            state.reserved += 1;
            return Ok(GrantedPlace { is_reserved: true, _grant: None });
        }
        self.granted(CONNECTION_BYTES)
    }

    /// A place for a connection by a port, of which none is reserved.
    fn port_place(&self) -> Result<GrantedPlace, NotAdmitted> {
        self.granted(Who::Tcp.bytes())
    }

    fn granted(&self, bytes: u64) -> Result<GrantedPlace, NotAdmitted> {
        match self.ledger.try_grant(Category::Request, bytes) {
            Ok(grant) => Ok(GrantedPlace { is_reserved: false, _grant: Some(grant) }),
            Err(refused) => {
                Err(NotAdmitted { why: format!("no room: {refused}"), may_pass: refused.can_fit() })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Places of connections that are open and not about to end.
    fn taken(&self) -> usize {
        self.holders().map(Who::places).sum()
    }

    fn taken_by(&self, who: Who) -> usize {
        self.holders().filter(|of| *of == who).map(Who::places).sum()
    }

    fn holders(&self) -> impl Iterator<Item = Who> {
        self.entries.iter().filter(|entry| entry.place.is_some()).map(|entry| entry.who)
    }

    /// The user who has the most places, for more than one connection.
    fn greatest_user(&self) -> Option<Who> {
        let all = self.entries.iter().map(|entry| (self.taken_by(entry.who), entry.who));
        let users = all.filter(|(taken, who)| *taken > who.places() && *who != Who::Keeper);
        users.max_by_key(|(taken, _)| *taken).map(|(_, who)| who)
    }

    /// Tells the longest idle of the connections that `may_end` and have been idle since `spare` to end,
    /// and takes its place.
    fn evict(
        &mut self,
        spare: Option<Instant>,
        may_end: impl Fn(Who) -> bool,
    ) -> Option<GrantedPlace> {
        let idle = self.entries.iter_mut().filter(|entry| may_end(entry.who));
        let idle = idle.filter(|entry| entry.place.is_some() && entry.activity.is_idle());
        let longest = idle.min_by_key(|entry| entry.activity.idle_since())?;
        if Some(longest.activity.idle_since()) > spare {
            return None;
        }
        longest.activity.end();
        longest.place.take()
    }

    fn give_back(&mut self, place: GrantedPlace) {
        self.reserved -= usize::from(place.is_reserved);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        let at = state.entries.iter().position(|entry| entry.number == self.number);
        let entry = at.map(|at| state.entries.swap_remove(at));
        if let Some(place) = entry.and_then(|entry| entry.place) {
            state.give_back(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::activity::InService;

    fn connections(places: u64) -> Arc<Connections> {
        Connections::new(Ledger::new(places * CONNECTION_BYTES))
    }

    /// As many as are admitted, all of them busy.
    fn fill(connections: &Arc<Connections>, who: Who, limit: usize) -> Vec<(Admission, InService)> {
        let admit = || {
            let admission = connections.admit_at_last(who, limit).ok()?;
            let service = Activity::begin(&admission.activity);
            Some((admission, service))
        };
        std::iter::from_fn(admit).collect()
    }

    /// 256 idle connections of one user shut out all others.
    #[test]
    fn a_user_has_a_share_and_keepers_always_get_in() {
        let connections = connections(64);
        let first = fill(&connections, Who::User(1), 64);
        let second = fill(&connections, Who::User(2), 64);
        let third = fill(&connections, Who::Unknown, 64);
        assert_eq!([first.len(), second.len(), third.len()], [32, 16, 8]);
        let why = connections.admit(Who::User(1), 64).unwrap_err();
        assert_eq!(why.to_string(), "this user has 32 places for connections, 8 are free");
        let keepers = fill(&connections, Who::Keeper, 64);
        assert_eq!(keepers.len(), 64 + RESERVED_CONNECTIONS - 56);
        drop((first, second, third, keepers));
        let state = connections.lock();
        assert_eq!((state.entries.len(), state.reserved), (0, 0));
        assert_eq!(connections.ledger.free_bytes(), 64 * CONNECTION_BYTES);
    }

    /// A user's connection ended root's idle one, as an administrator's `hermesctl top` has.
    #[test]
    fn a_user_takes_no_keepers_place_and_nobodys_only_one() {
        let connections = connections(0);
        let admit = |who| connections.admit_at_last(who, 4);
        let keepers: Vec<Admission> = (0..3).map(|_| admit(Who::Keeper).unwrap()).collect();
        let user = admit(Who::User(1)).unwrap();
        admit(Who::User(2)).unwrap_err();
        assert!(!keepers.iter().chain([&user]).any(|of| of.activity.is_ended()));
        // Its own makes room for its next.
        let _next = admit(Who::User(1)).unwrap();
        assert!(user.activity.is_ended());
    }

    /// Nobody tells whose programs come by a port: with a share each, they would leave none to users.
    /// Counted by heads, strangers who had shown no token held half of all that connections may take.
    #[test]
    fn all_who_come_by_ports_are_one_user_without_a_reserve() {
        let places = 64;
        let connections = connections(places);
        let busy = fill(&connections, Who::Tcp, 64);
        let bytes = CONNECTION_BYTES + UNTAKEN_BYTES as u64;
        assert_eq!(busy.len() as u64, places * CONNECTION_BYTES / bytes / 2);
        assert_eq!(connections.lock().reserved, 0);
        connections.admit(Who::Tcp, 64).unwrap_err();
        let user = connections.admit(Who::User(1), 64).unwrap();
        connections.admit(Who::Keeper, 64).unwrap();
        drop((busy, user));
        assert_eq!(connections.ledger.free_bytes(), places * CONNECTION_BYTES);
        let idle: Vec<Admission> =
            (0..40).map(|_| connections.admit_at_last(Who::Tcp, 64).unwrap()).collect();
        assert!(idle.iter().filter(|of| !of.activity.is_ended()).count() <= 16);
        let many = Connections::new(Ledger::new(4000 * CONNECTION_BYTES));
        assert_eq!(fill(&many, Who::Tcp, 1000).len(), PORT_CONNECTIONS);
    }

    /// Users who had taken all places shut the first client over TCP out.
    #[test]
    fn an_idle_user_makes_room_for_a_port() {
        let connections = connections(64);
        let admit = |who| connections.admit_at_last(who, 4).unwrap();
        let first = [admit(Who::User(1)), admit(Who::User(1))];
        let _others = [admit(Who::User(2)), admit(Who::User(3))];
        let _port = admit(Who::Tcp);
        assert_eq!(first.iter().filter(|of| of.activity.is_ended()).count(), 1);
        drop(first);
        assert_eq!(connections.lock().reserved, 2);
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let connections = connections(0);
        let admit = |who| connections.admit_at_last(who, 8);
        let mut first: Vec<Admission> = (0..4).map(|_| admit(Who::User(1)).unwrap()).collect();
        // It was idle later than the others.
        drop(Activity::begin(&first[0].activity));
        let busy = Activity::begin(&first[1].activity);
        let next = admit(Who::User(1)).unwrap();
        let ended =
            |all: &[Admission]| all.iter().map(|a| a.activity.is_ended()).collect::<Vec<_>>();
        assert_eq!(ended(&first), [false, false, true, false]);
        // Somebody else's, who has several, since there is none of the own.
        let other = admit(Who::User(2)).unwrap();
        assert_eq!(ended(&first), [false, false, true, true]);
        // A place that was taken over is given back once.
        drop(first.remove(2));
        drop((other, next));
        assert_eq!(connections.lock().reserved, 2);
        drop(busy);
        assert!(connections.end_one() && connections.end_one() && !connections.end_one());
        drop(first);
        assert_eq!(connections.lock().reserved, 0);
    }

    /// Of 15,969 right requests of nine connections eight were not answered: for each one that came
    /// while passes held all memory, the connection ended on which the next request was under way.
    #[test]
    fn who_asks_again_and_again_loses_no_connection_for_want_of_memory() {
        let connections = connections(1);
        let held = connections.ledger.try_grant(Category::Activations, 1).unwrap();
        let admit = || connections.admit(Who::Keeper, 64);
        let first: Vec<Admission> = (0..RESERVED_CONNECTIONS).map(|_| admit().unwrap()).collect();
        first.iter().for_each(|of| drop(Activity::begin(&of.activity)));
        assert!(admit().unwrap_err().may_pass);
        assert!(!first.iter().any(|of| of.activity.is_ended()));
        drop(held);
        let next = admit().unwrap();
        // Somebody has to make room in the end.
        assert!(admit().unwrap_err().may_pass);
        let _last = connections.admit_at_last(Who::Keeper, 64).unwrap();
        assert_eq!(first.iter().filter(|of| of.activity.is_ended()).count(), 1);
        drop((first, next));
        // What would be in vain is not waited for.
        let none = Connections::new(Ledger::new(CONNECTION_BYTES - 1));
        let _all: Vec<Admission> =
            (0..=RESERVED_CONNECTIONS).map(|_| none.admit(Who::Keeper, 64).unwrap()).collect();
    }
}
