//! A pass that can be left on its way, and gone on with more than once: each time with other weights
//! from there on.

use super::super::ops::{Linear, TapeFeed};
use super::super::uses::streamed_slots;
use super::{Guard, Lockstep, Outcomes, Passage};
use std::collections::HashMap;
use tract_core::internal::*;

/// Requests somewhere on their way through a plan. A copy goes on by itself; values are shared.
pub struct Walk {
    seats: Vec<Passage>,
    /// The next one.
    step: usize,
}

impl Walk {
    /// The same requests at the same place.
    pub fn fork(&self) -> Walk {
        Walk { seats: self.seats.iter().map(Passage::fork).collect(), step: self.step }
    }

    /// What ended a request early, the first one's.
    pub fn ended(&self) -> Option<&TractError> {
        self.seats.iter().find_map(|seat| seat.ended.as_ref())
    }
}

/// A node that is evaluated next, for all requests that have not ended.
pub struct Visit<'a> {
    node: &'a TypedNode,
    seats: &'a [Passage],
}

impl Visit<'_> {
    /// The node's name in the graph.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// What it computes, by tract's name for it or ours.
    pub fn op(&self) -> String {
        self.node.op.name().into_owned()
    }

    /// How often a weight of the tape will be multiplied with something: each weight of a linear once
    /// for each column of its inputs.
    pub fn multiplications(&self) -> u64 {
        let Some(linear) = self.node.op_as::<Linear>() else { return 0 };
        let live = self.seats.iter().filter(|seat| seat.ended.is_none());
        let elements: usize = live.map(|seat| seat.largest_input(self.node)).sum();
        elements as u64 * linear.outputs as u64
    }
}

impl Lockstep {
    /// Seats the requests before the first node.
    pub fn begin(&self, requests: Vec<TVec<TValue>>) -> Walk {
        let is_alone = requests.len() == 1;
        let seat = |inputs| Passage { is_alone, ..self.seat(inputs) };
        Walk { seats: requests.into_iter().map(seat).collect(), step: 0 }
    }

    /// Of a request that has not set out, the logits of its last `rows` new tokens at most are wanted;
    /// of none, it goes no further than where all but these is there. Where the graph's logits have no
    /// open size, nothing changes.
    pub fn want_rows(&self, walk: &mut Walk, request: usize, rows: usize) {
        let Some((open, steps_before)) = &self.rows else { return };
        let seat = &mut walk.seats[request];
        open.bind(&mut seat.state.turn_state.resolved_symbols, rows);
        seat.steps = (rows == 0).then_some(*steps_before);
    }

    /// Evaluates the plan from where `walk` is up to step `end`, without that one.
    ///
    /// # Errors
    /// Where the tape is needed; what ends one request is its own.
    pub fn go<T>(
        &self,
        walk: &mut Walk,
        end: usize,
        feed: &TapeFeed,
        watch: Guard,
        enter: &dyn Fn(&Visit) -> T,
    ) -> TractResult<()> {
        for seat in &mut walk.seats {
            seat.state.turn_state.shared.insert(feed.clone());
        }
        let order = self.plan.order_without_consts();
        let goes_on = |walk: &Walk| walk.seats.iter().any(|seat| seat.is_on_its_way(walk.step));
        while walk.step < end.min(order.len()) && goes_on(walk) {
            let (step, node) = (walk.step, self.plan.model().node(order[walk.step]));
            walk.step += 1;
            let _entered = enter(&Visit { node, seats: &walk.seats });
            let seats = walk.seats.iter_mut().enumerate();
            for (index, seat) in seats.filter(|(_, seat)| seat.ended.is_none()) {
                if let Err(error) = watch(index) {
                    seat.end(error);
                }
            }
            let mut live: TVec<&mut Passage> =
                walk.seats.iter_mut().filter(|seat| seat.is_on_its_way(step)).collect();
            if live.is_empty() {
                break;
            }
            self.step(feed, step, node, &mut live)?;
        }
        Ok(())
    }

    /// What the requests come to, at the plan's end.
    pub fn finish(&self, walk: Walk) -> Outcomes {
        if walk.seats.len() > 1 {
            rayon::broadcast(|_| self.forget());
        }
        walk.seats.into_iter().map(Passage::finish).collect()
    }

    /// How many nodes are evaluated.
    pub fn steps(&self) -> usize {
        self.plan.order_without_consts().len()
    }

    /// The steps of streamed ops, in their order, with the ops' slots.
    pub fn streamed_steps(&self) -> Vec<(usize, usize)> {
        let slots: HashMap<usize, usize> = streamed_slots(&self.plan).into_iter().collect();
        let order = self.plan.order_without_consts().iter().enumerate();
        order.filter_map(|(step, node)| Some((step, *slots.get(node)?))).collect()
    }
}
