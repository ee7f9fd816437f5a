//! Requests of one model evaluated together: node by node for all of them.
//!
//! Each request keeps a state of its own, so lengths may differ and nothing is padded. Where a
//! node needs the tape, the block is leased once: a linear multiplies the columns of all requests
//! side by side, a constant is assembled once and shared.

mod branches;
mod step;
mod walk;

pub use branches::check_ops;
pub use walk::{Visit, Walk};

use super::attention::{Keeping, keeping_of};
use super::decided;
use super::logits::LogitsRows;
use super::memory::{Footprint, Liveness};
use super::ops::{Constant, Feed, Linear, TapeFeed};
use super::sizes::Sizes;
use crate::codec::PANEL_ROWS;
use crate::sys::panics;
use branches::Branches;
use rayon::prelude::*;
use std::fmt;
use std::sync::Arc;
use step::Step;
use tract_core::internal::*;
use tract_core::model::order::build_flush_list;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::konst::Const;
use tract_core::ops::matmul::optimized::OptMatMul;
use tract_core::ops::scan::OptScan;
use tract_core::plan::SessionId;
use tract_linalg::multithread::{
    Executor, current_threading_element_threshold, multithread_tract_scope,
};

/// A plan that several requests can walk through in lockstep.
pub struct Lockstep {
    plan: Arc<TypedSimplePlan>,
    steps: Vec<Step>,
    liveness: Arc<Liveness>,
    /// The open size of its logits, and after how many steps all is there but these.
    rows: Option<(LogitsRows, usize)>,
}

impl fmt::Debug for Lockstep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a plan of {} steps", self.steps.len())
    }
}

/// One request on its way through the plan.
struct Passage {
    state: TypedSimpleState,
    /// What ended it early.
    ended: Option<TractError>,
    /// Whether it has the pass to itself.
    is_alone: bool,
    /// What it has been granted to hold besides weights, once more had to be asked for.
    granted_bytes: Option<u64>,
    /// Steps that it goes along; none for all.
    steps: Option<usize>,
}

/// What every request comes to: its outputs, or why there are none.
pub type Outcomes = Vec<TractResult<TVec<TValue>>>;

/// Asked before each node for each request; an error ends that request alone.
pub type Guard<'a> = &'a (dyn Fn(usize) -> TractResult<()> + Sync);

impl Lockstep {
    /// Prepares `plan`.
    pub fn new(plan: Arc<TypedSimplePlan>) -> Lockstep {
        let model = plan.model();
        let kept = |node: &TypedNode| !node.op_is::<Const>();
        let flush = build_flush_list(model, plan.order_without_consts(), &model.outputs, kept);
        let bodies = |node: &TypedNode| node.op_as().map(Branches::livenesses);
        let liveness = Arc::new(Liveness::of(&plan, &flush, &bodies));
        let rows = LogitsRows::of(model).map(|rows| (rows.clone(), rows.steps_before(&plan)));
        let steps = Step::all(&plan, flush);
        Lockstep { plan, steps, liveness, rows }
    }

    /// What lives when.
    pub(super) fn liveness(&self) -> Arc<Liveness> {
        Arc::clone(&self.liveness)
    }

    /// What a request with inputs of these shapes, in the plan's order, will hold besides weights.
    pub fn footprint(&self, inputs: &[Vec<usize>]) -> Footprint {
        self.footprint_of_rows(inputs, usize::MAX)
    }

    /// The same where the logits of its last `rows` tokens at most are wanted ([`Lockstep::want_rows`]).
    pub fn footprint_of_rows(&self, inputs: &[Vec<usize>], rows: usize) -> Footprint {
        self.liveness.footprint(inputs, rows)
    }

    /// Bytes that each compute thread decodes panels into, where weights are not stored as f32.
    pub fn panel_bytes(&self) -> u64 {
        let linears = self.plan.model().nodes.iter().filter_map(|node| node.op_as::<Linear>());
        let depth = linears.map(|linear| linear.depth).max().unwrap_or(0);
        (depth * PANEL_ROWS * size_of::<f32>()) as u64
    }

    /// By input, how a session keeps it that is the past of a layer.
    pub fn keeping(&self) -> Vec<Option<Keeping>> {
        keeping_of(self.plan.model())
    }

    /// Whether what comes of a token has the same bits whatever tokens are new beside it, which tract's
    /// own products do not promise.
    pub fn keeps_bits(&self) -> bool {
        let mixes = |node: &TypedNode| {
            node.op_is::<OptMatMul>() || node.op_is::<EinSum>() || node.op_is::<OptScan>()
        };
        !self.plan.model().nodes.iter().any(mixes)
    }

    /// The size of an output's axis where the inputs have these shapes, as far as these tell.
    pub fn output_size(&self, output: usize, axis: usize, inputs: &[Vec<usize>]) -> Option<usize> {
        let model = self.plan.model();
        let fact = model.outlet_fact(*model.outputs.get(output)?).ok()?;
        let size = fact.shape.get(axis)?.maybe_eval_to_i64(&self.liveness.bind(inputs))?;
        usize::try_from(size).ok()
    }

    /// What its shapes ask of the sizes of its inputs.
    pub fn sizes(&self) -> Sizes {
        Sizes::of(&self.plan)
    }

    /// What requests of these lengths will hold besides weights: all open dimensions have the length,
    /// or where the plan takes no such inputs, as of a mask over what is past and new, those that it
    /// takes do.
    pub fn footprints_at<const COUNT: usize>(&self, lengths: [usize; COUNT]) -> [Footprint; COUNT] {
        let sizes = self.sizes();
        let choice = sizes.plainest();
        lengths.map(|length| self.liveness.footprint_of(&sizes.values(&choice, length)))
    }

    /// Evaluates the plan once for all of `requests`, each given as its inputs in the plan's
    /// order. `enter` is told of each node and returns what is dropped after it.
    ///
    /// An error of one request is its own; an error where the tape is needed is everybody's.
    pub fn run<T>(
        &self,
        feed: &TapeFeed,
        requests: Vec<TVec<TValue>>,
        watch: Guard,
        enter: &dyn Fn(&Visit) -> T,
    ) -> TractResult<Outcomes> {
        self.complete(self.begin(requests), feed, watch, enter)
    }

    /// Evaluates what is left of the plan, as [`Lockstep::run`] does.
    pub fn complete<T>(
        &self,
        mut walk: Walk,
        feed: &TapeFeed,
        watch: Guard,
        enter: &dyn Fn(&Visit) -> T,
    ) -> TractResult<Outcomes> {
        let walked = self.go(&mut walk, self.steps(), feed, watch, enter);
        let outcomes = self.finish(walk);
        walked.map(|()| outcomes)
    }

    /// Lets go of what tract keeps in this thread for [`Passage::compute_beside`].
    fn forget(&self) {
        let mut products = self.plan.model().nodes.iter().filter(|n| n.op_is::<OptMatMul>());
        if let Some(node) = products.next() {
            node.op.drop_session(SessionId::NONE, node.id);
        }
    }

    fn seat(&self, inputs: TVec<TValue>) -> Passage {
        let set = panics::caught(|| SimpleState::new_from_inputs(&self.plan, inputs))
            .unwrap_or_else(|panic| Err(format_err!(panic)));
        match set {
            Ok(mut state) => {
                self.furnish(&mut state.turn_state);
                let symbols = &mut state.turn_state.resolved_symbols;
                self.rows.iter().for_each(|(rows, _)| rows.bind_usual(symbols));
                Passage { state, ended: None, is_alone: true, granted_bytes: None, steps: None }
            }
            Err(error) => {
                // The state of no inputs: it is never evaluated.
                let state = self.plan.spawn().expect("a plan that was loaded can be spawned");
                let ended = Some(error);
                Passage { state, ended, is_alone: true, granted_bytes: None, steps: None }
            }
        }
    }

    /// Gives a model without inputs its constants, which tract sets with the first input.
    fn furnish(&self, turn: &mut TurnState) {
        let nodes = &self.plan.model().nodes;
        if turn.values.is_empty() {
            turn.values = vec![None; nodes.len()];
            for node in nodes {
                let constant = node.op_as::<Const>();
                turn.values[node.id] = constant.map(|op| tvec!(op.val().clone().into_tvalue()));
            }
        }
    }

    fn step(
        &self,
        feed: &TapeFeed,
        step: usize,
        node: &TypedNode,
        live: &mut TVec<&mut Passage>,
    ) -> TractResult<()> {
        let step = &self.steps[step];
        if let Some(linear) = node.op_as::<Linear>() {
            let mut inputs = Vec::with_capacity(live.len());
            live.retain(|seat| {
                let input = seat.attempt(node, |seat| {
                    let input = args_1!(seat.take_inputs(self, node, &step.flush)?);
                    linear.check(&input).map(|()| input)
                });
                inputs.extend(input);
                seat.ended.is_none()
            });
            if live.is_empty() {
                return Ok(());
            }
            let outputs = linear.eval_together(&*feed.0, inputs)?;
            for (seat, output) in live.iter_mut().zip(outputs) {
                seat.store(self, node, step, tvec!(output.into_tvalue()));
            }
            return Ok(());
        }
        if let Some(constant) = node.op_as::<Constant>() {
            let shared = constant.assemble(&*feed.0)?.into_tvalue();
            for seat in live {
                seat.store(self, node, step, tvec!(shared.clone()));
            }
            return Ok(());
        }
        if let [seat] = &mut live[..] {
            seat.compute(self, node, step);
            return Ok(());
        }
        let elements: TVec<usize> = live.iter().map(|seat| seat.largest_input(node)).collect();
        match Spread::of(rayon::current_num_threads(), &elements) {
            Spread::Within => live.iter_mut().for_each(|seat| seat.compute(self, node, step)),
            Spread::Beside => {
                live.par_iter_mut().for_each(|seat| seat.compute_beside(self, node, step));
            }
        }
        Ok(())
    }
}

/// How the compute threads share a node of several requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// One request after another, each on all threads, as far as tract divides the node.
    Within,
    /// The requests beside each other, each on one thread.
    Beside,
}

impl Spread {
    /// All threads within each request only where there are more threads than requests and each of
    /// these, whose largest inputs have so many elements, has enough to do: tract divides no smaller
    /// values among threads.
    fn of(threads: usize, elements: &[usize]) -> Spread {
        let enough = current_threading_element_threshold();
        match elements {
            all if all.len() < threads && all.iter().all(|elements| *elements >= enough) => {
                Spread::Within
            }
            _ => Spread::Beside,
        }
    }
}

/// The node whose evaluation ended a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtNode {
    /// Its name in the graph, which is that of the ONNX node or begins with it.
    pub name: String,
    pub op: String,
}

impl AtNode {
    fn of(node: &TypedNode) -> AtNode {
        AtNode { name: node.name.clone(), op: node.op.name().into_owned() }
    }
}

impl fmt::Display for AtNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node \"{}\" ({})", self.name, self.op)
    }
}

impl Passage {
    /// Whether it takes part in that step.
    fn is_on_its_way(&self, step: usize) -> bool {
        self.ended.is_none() && self.steps.is_none_or(|steps| step < steps)
    }

    fn fork(&self) -> Passage {
        let mut state = self.state.clone();
        // Tract's copy of a state has none of its values.
        state.turn_state.values = self.state.turn_state.values.clone();
        let ended = self.ended.as_ref().map(|error| format_err!("{error:#}"));
        let Passage { is_alone, granted_bytes, steps, .. } = *self;
        Passage { state, ended, is_alone, granted_bytes, steps }
    }

    fn compute(&mut self, plan: &Lockstep, node: &TypedNode, step: &Step) {
        let computed = self.attempt(node, |seat| {
            let inputs = seat.take_inputs(plan, node, &step.flush)?;
            seat.state.compute_one_with_inputs(node.id, inputs)
        });
        if computed.is_some() {
            self.settle(plan, node, step);
        }
    }

    /// The same on any thread of the pool, and on that one alone: a product that waited there for
    /// other threads would meanwhile take up another request, which finds this one's scratch in use.
    ///
    /// Tract keeps scratch memory for a state in each thread that evaluates it, and lets go of that
    /// of the dropping thread alone; so all requests of a pass share what tract keeps for none, which
    /// is dropped in every thread at the pass's end, and an op's own state, a loop's, lives here.
    fn compute_beside(&mut self, plan: &Lockstep, node: &TypedNode, step: &Step) {
        let computed = multithread_tract_scope(Executor::SingleThread, || {
            self.attempt(node, |seat| {
                let inputs = seat.take_inputs(plan, node, &step.flush)?;
                let context = seat.state.turn_state.context(SessionId::NONE, node.id);
                let mut op_state = node.op.state(&context)?;
                tract_core::plan::eval(&context, op_state.as_deref_mut(), node, inputs)
            })
        });
        if let Some(values) = computed {
            self.store(plan, node, step, values);
        }
    }

    /// Does what the request's own values may make fail: an error or a panic there is of this
    /// request, and ends it alone. What was changed by then goes with it.
    fn attempt<T>(
        &mut self,
        node: &TypedNode,
        work: impl FnOnce(&mut Passage) -> TractResult<T>,
    ) -> Option<T> {
        let done = panics::caught(|| work(self)).unwrap_or_else(|panic| Err(format_err!(panic)));
        done.map_err(|error| self.end(error.context(AtNode::of(node)))).ok()
    }

    /// Elements of the node's largest input.
    fn largest_input(&self, node: &TypedNode) -> usize {
        let values = &self.state.turn_state.values;
        let elements = |input: &OutletId| {
            let value = values[input.node].as_ref().and_then(|values| values.get(input.slot));
            value.map_or(0, |value| value.len())
        };
        node.inputs.iter().map(elements).max().unwrap_or(0)
    }

    /// The node's inputs; what only they needed is let go, and what they make it hold is granted.
    fn take_inputs(
        &mut self,
        plan: &Lockstep,
        node: &TypedNode,
        flush: &[usize],
    ) -> TractResult<TVec<TValue>> {
        let mut inputs = self.state.prepare_inputs(node.id)?;
        for value in flush {
            self.state.turn_state.values[*value] = None;
        }
        bind_sizes(&mut inputs, &self.state.turn_state.resolved_symbols)?;
        if node.op.mints_runtime_symbols() {
            self.foresee(plan, node, &inputs)?;
        }
        Ok(inputs)
    }

    /// Looks what the node will make of its inputs' values, before it allocates that.
    fn foresee(&mut self, plan: &Lockstep, node: &TypedNode, inputs: &[TValue]) -> TractResult<()> {
        let turn = &self.state.turn_state;
        let mut bound = vec![];
        for (dim, size) in decided::sizes(node, &turn.resolved_symbols, inputs)? {
            match (dim.maybe_eval_to_i64(&turn.resolved_symbols), dim) {
                (Some(known), _) => check_size(size, known)?,
                (None, TDim::Sym(symbol)) => bound.push((symbol, size)),
                _ => {}
            }
        }
        let work_bytes = decided::work_bytes(node, inputs)?;
        if work_bytes > 0 {
            self.feed()?.grow(work_bytes)?;
        }
        self.bind(plan, bound)
    }

    /// Binds symbols that the inputs left open, and asks for what the pass will hold by these sizes.
    fn bind(&mut self, plan: &Lockstep, bound: Vec<(Symbol, usize)>) -> TractResult<()> {
        if bound.is_empty() {
            return Ok(());
        }
        let mut symbols = self.state.turn_state.resolved_symbols.clone();
        let bytes = |symbols: &SymbolValues| {
            let footprint = plan.liveness.footprint_of(symbols);
            if self.is_alone { footprint.alone_bytes } else { footprint.together_bytes }
        };
        let granted_bytes = self.granted_bytes.unwrap_or_else(|| bytes(&symbols));
        bound.into_iter().for_each(|(symbol, size)| symbols.set(&symbol, size as i64));
        let needed_bytes = bytes(&symbols);
        if needed_bytes > granted_bytes {
            self.feed()?.grow(needed_bytes - granted_bytes)?;
        }
        self.granted_bytes = Some(needed_bytes.max(granted_bytes));
        self.state.turn_state.resolved_symbols = symbols;
        Ok(())
    }

    fn feed(&self) -> TractResult<Arc<dyn Feed>> {
        let feed = self.state.turn_state.shared.get::<TapeFeed>();
        Ok(Arc::clone(&feed.context("the pass brought no tape")?.0))
    }

    fn store(&mut self, plan: &Lockstep, node: &TypedNode, step: &Step, values: TVec<TValue>) {
        self.state.turn_state.values[node.id] = Some(values);
        self.settle(plan, node, step);
    }

    /// Ends the request where sizes that its values decide contradict what is known, or are too much.
    fn settle(&mut self, plan: &Lockstep, node: &TypedNode, step: &Step) {
        if !step.may_bind {
            return;
        }
        if let Err(error) = self.resolve(plan, node) {
            self.end(error.context(AtNode::of(node)));
        }
    }

    /// Binds symbols that are still open, sizes that depend on data, to what was computed. Where such
    /// a size is known otherwise it has to be that: what follows reads by it, unchecked.
    fn resolve(&mut self, plan: &Lockstep, node: &TypedNode) -> TractResult<()> {
        let turn = &self.state.turn_state;
        let Some(values) = &turn.values[node.id] else { return Ok(()) };
        let decides = node.op.mints_runtime_symbols() && !node.op_is::<OptScan>();
        let mut bound: Vec<(Symbol, usize)> = vec![];
        for (outlet, value) in node.outputs.iter().zip(values) {
            for (dim, size) in outlet.fact.shape.iter().zip(value.shape()) {
                match dim {
                    TDim::Sym(symbol) if turn.resolved_symbols.get(symbol).is_none() => {
                        match bound.iter().find(|(other, _)| other == symbol) {
                            Some((_, known)) if decides => check_size(*size, *known as i64)?,
                            Some(_) => {}
                            None => bound.push((symbol.clone(), *size)),
                        }
                    }
                    _ if decides => {
                        if let Some(known) = dim.maybe_eval_to_i64(&turn.resolved_symbols) {
                            check_size(*size, known)?;
                        }
                    }
                    _ => {}
                }
            }
        }
        self.bind(plan, bound)
    }

    /// Ends the request and lets go of all it holds.
    fn end(&mut self, error: TractError) {
        self.ended = Some(error);
        self.state.turn_state.values.clear();
    }

    /// The outputs; nothing in the place of those that were not computed.
    fn outputs_so_far(&self) -> TractResult<TVec<TValue>> {
        let (model, turn) = (self.state.plan().model(), &self.state.turn_state);
        let output = |outlet: &OutletId| {
            if let Some(values) = &turn.values[outlet.node] {
                return Ok(values[outlet.slot].clone());
            }
            let fact = model.outlet_fact(*outlet)?;
            let shape = fact.shape.eval_to_usize(&turn.resolved_symbols)?;
            ensure!(shape.contains(&0), "{} was not computed", model.node(outlet.node));
            Ok(Tensor::zero_dt(fact.datum_type, &shape)?.into_tvalue())
        };
        model.outputs.iter().map(output).collect()
    }

    fn finish(mut self) -> TractResult<TVec<TValue>> {
        match self.ended.take() {
            Some(error) => Err(error),
            None => {
                let mut outputs = match self.steps {
                    Some(_) => self.outputs_so_far()?,
                    None => self.state.outputs()?,
                };
                bind_sizes(&mut outputs, &self.state.turn_state.resolved_symbols)?;
                Ok(outputs)
            }
        }
    }
}

fn check_size(size: usize, known: i64) -> TractResult<()> {
    ensure!(known == size as i64, "{size} elements where there are to be {known}");
    Ok(())
}

/// Puts numbers in the place of sizes that constants leave open: not every op does so itself.
fn bind_sizes(values: &mut TVec<TValue>, symbols: &SymbolValues) -> TractResult<()> {
    for value in values.iter_mut().filter(|value| value.datum_type() == TDim::datum_type()) {
        let sizes: Vec<TDim> = value.try_as_plain_ram()?.as_slice::<TDim>()?.to_vec();
        if sizes.iter().any(|size| size.as_i64().is_none()) {
            let bound: Vec<TDim> = sizes.iter().map(|size| size.eval(symbols)).collect();
            *value = tensor1(&bound).into_shape(value.shape())?.into_tvalue();
        }
    }
    Ok(())
}

#[cfg(test)]
pub mod tests;
