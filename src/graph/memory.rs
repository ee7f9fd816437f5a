//! How many bytes of activations a pass holds at its peak, before it is run.

use super::attention::{Append, Mix};
use super::kernel::TILE_COLUMNS;
use super::logits::LogitsRows;
use super::ops::{Constant, Linear};
use std::collections::HashMap;
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::ops::binary::{OptBinByScalar, OptBinChain, OptBinUnicast, TypedBinOp};
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::konst::Const;

/// Peak bytes of a pass besides weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Live node outputs at the hungriest step, and what that step works with.
    pub alone_bytes: u64,
    /// The same where the request shares its pass: linears then hold its columns twice, on their
    /// own and beside those of the others.
    pub together_bytes: u64,
}

impl Footprint {
    /// Bytes that a value of so many is counted with: what lies between an allocation's size and what
    /// is mapped for it is an eighth at most.
    pub fn taken_bytes(bytes: u64) -> u64 {
        bytes.saturating_add(bytes / 8).saturating_add(VALUE_BYTES)
    }
}

/// What a node works with besides its inputs and outputs.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Nothing: it writes its output, or changes in place an input that nobody needs any more.
    Nothing,
    /// So many times the largest value it touches: packed operands and reordered copies.
    Copies(u64),
    /// Of f32. Its input is packed, filled up by at most so many bytes, and gone before there is
    /// an output.
    Linear { fill_bytes: u64 },
    /// Once more what it reads, and so many bytes.
    Attention { work_bytes: u64 },
}

/// Copies of an op that nothing else is known of.
const WORKING_COPIES: u64 = 2;

/// Copies of a linear of which other types are cast to f32 and back.
const LINEAR_COPIES_CAST: u64 = 3;

/// Copies of a linear of a pass that is shared.
const LINEAR_COPIES_TOGETHER: u64 = 3;

impl Work {
    fn of(model: &TypedModel, node: &TypedNode) -> Work {
        if node.op_is::<Mix>() {
            let facts = model.node_input_facts(node.id).unwrap_or_default();
            return Work::Attention { work_bytes: Mix::work_bytes(&facts) };
        }
        if let Some(linear) = node.op_as::<Linear>() {
            let fill_bytes = ((TILE_COLUMNS - 1) * linear.depth * size_of::<f32>()) as u64;
            return match linear.dtype == f32::datum_type() {
                true => Work::Linear { fill_bytes },
                false => Work::Copies(LINEAR_COPIES_CAST),
            };
        }
        let is_plain = |output: &Outlet<TypedFact>| !output.fact.datum_type.is_quantized();
        let is_elementwise = node.op_is::<ElementWiseOp>()
            || node.op_is::<TypedBinOp>()
            || node.op_is::<OptBinByScalar>()
            || node.op_is::<OptBinUnicast>()
            || node.op_is::<OptBinChain>();
        match node {
            _ if is_elementwise && node.outputs.iter().all(is_plain) => Work::Nothing,
            _ if node.op_is::<Append>() => Work::Nothing,
            _ if node.op_is::<Constant>() => Work::Copies(1),
            _ => Work::Copies(WORKING_COPIES),
        }
    }

    /// The same in a pass that is shared.
    fn together(self) -> Work {
        match self {
            Work::Linear { .. } => Work::Copies(LINEAR_COPIES_TOGETHER),
            other => other,
        }
    }

    /// Bytes held at the node's peak besides what lives on: `read` are the inputs that nobody needs
    /// any more, `largest_read` is the largest of all its inputs.
    fn peak_bytes(self, read: u64, written: u64, largest_read: u64) -> u64 {
        match self {
            Work::Nothing => read + written,
            Work::Copies(copies) => read + written + copies * largest_read.max(written),
            Work::Linear { fill_bytes } => largest_read + fill_bytes + read.max(written),
            Work::Attention { work_bytes } => 2 * read + written + work_bytes,
        }
    }
}

/// What is needed to foretell the footprint of any request: which value lives when, and the size
/// of each as an expression of the model's symbols. Values have few different sizes, each of which
/// is evaluated once a request.
#[derive(Debug)]
pub struct Liveness {
    /// The shapes of the plan's inputs.
    inputs: Vec<TVec<TDim>>,
    /// Different sizes of values, in bytes.
    sizes: Vec<TDim>,
    /// Which of `sizes` a node's outputs have together; none for constants.
    size_of: Vec<Option<usize>>,
    steps: Vec<Step>,
    /// What a request's state takes besides values: a place for each node's.
    state_bytes: u64,
    rows: Option<LogitsRows>,
}

/// More bytes than any machine has, few enough to add up those of a plan's values.
const MOST_BYTES: u64 = 1 << 44;

/// A node's place in a request's state.
const PLACE_BYTES: usize =
    size_of::<Option<TVec<TValue>>>() + size_of::<Option<Box<dyn OpState>>>();

/// What there is of a request beside its nodes: symbols, what the turn shares, names and shapes of
/// what it is answered; once for each row of a batch.
const SEAT_BYTES: usize = 2 << 10;

/// What a value takes besides its elements: the tensor around them and its count of users.
const VALUE_BYTES: u64 = 256;

/// A node in the plan's order.
#[derive(Debug)]
struct Step {
    node: usize,
    /// Nodes it reads, each once.
    reads: TVec<usize>,
    /// Nodes whose values nobody needs once this one has them.
    frees: TVec<usize>,
    work: Work,
    /// Of bodies, one of which it evaluates.
    bodies: Vec<Arc<Liveness>>,
}

/// The bodies of a node, one of which it evaluates.
type Bodies<'a> = &'a dyn Fn(&TypedNode) -> Option<[Arc<Liveness>; 2]>;

impl Liveness {
    /// Looks at a plan; `frees` are the nodes whose values each step is the last to need.
    pub fn of(plan: &TypedSimplePlan, frees: &[TVec<usize>], bodies: Bodies) -> Liveness {
        let model = plan.model();
        let (mut sizes, mut size_of) = (vec![], vec![None; model.nodes.len()]);
        let mut index_of = HashMap::new();
        for node in model.nodes.iter().filter(|node| !node.op_is::<Const>()) {
            let size: TDim = node.outputs.iter().map(|output| output.fact.mem_size()).sum();
            size_of[node.id] = Some(*index_of.entry(size).or_insert_with_key(|size| {
                sizes.push(size.clone());
                sizes.len() - 1
            }));
        }
        let step = |(step, node): (usize, &usize)| {
            let node = model.node(*node);
            // The keys and values of what is past become those of all: they are counted as these.
            let counted = if node.op_is::<Append>() { 1 } else { node.inputs.len() };
            let inputs = node.inputs.iter().take(counted);
            let mut reads: TVec<usize> = inputs.map(|input| input.node).collect();
            reads.sort_unstable();
            reads.dedup();
            let bodies = bodies(node).into_iter().flatten().collect();
            Step {
                node: node.id,
                reads,
                frees: frees[step].clone(),
                work: Work::of(model, node),
                bodies,
            }
        };
        let steps = plan.order_without_consts().iter().enumerate().map(step).collect();
        let fact = |outlet: &OutletId| &model.node(outlet.node).outputs[outlet.slot].fact;
        let inputs = model.inputs.iter().map(|outlet| fact(outlet).shape.to_tvec()).collect();
        let state_bytes = (model.nodes.len() * PLACE_BYTES + SEAT_BYTES) as u64;
        Liveness { inputs, sizes, size_of, steps, state_bytes, rows: LogitsRows::of(model) }
    }

    /// What a pass over inputs of these shapes will hold, as far as these tell, where the logits of
    /// `rows` tokens at most are wanted.
    pub fn footprint(&self, inputs: &[Vec<usize>], rows: usize) -> Footprint {
        let mut symbols = self.bind(inputs);
        self.rows.iter().for_each(|open| open.bind(&mut symbols, rows));
        self.footprint_of(&symbols)
    }

    /// What a pass will hold where the symbols stand for these sizes.
    pub fn footprint_of(&self, symbols: &SymbolValues) -> Footprint {
        let mut symbols = symbols.clone();
        self.rows.iter().for_each(|rows| rows.bind_usual(&mut symbols));
        let symbols = &symbols;
        let taken = |size| Footprint::taken_bytes(bytes_of(size, symbols));
        let sizes: Vec<u64> = self.sizes.iter().map(taken).collect();
        let size = |node: usize| self.size_of[node].map_or(0, |index| sizes[index]);
        let (mut is_live, mut live) = (vec![false; self.size_of.len()], self.state_bytes);
        let mut footprint = Footprint::default();
        for Step { node, reads, frees, work, bodies } in &self.steps {
            for freed in frees.iter().filter(|node| std::mem::take(&mut is_live[**node])) {
                live -= size(*freed);
            }
            let read = reads.iter().filter(|node| !is_live[**node]).map(|node| size(*node)).sum();
            let largest_read = reads.iter().map(|node| size(*node)).max().unwrap_or(0);
            let body = |body: &Arc<Liveness>| body.footprint_of(symbols).alone_bytes;
            let within = bodies.iter().map(body).max().unwrap_or(0);
            let peak =
                |work: Work| live + within + work.peak_bytes(read, size(*node), largest_read);
            footprint.alone_bytes = footprint.alone_bytes.max(peak(*work));
            footprint.together_bytes = footprint.together_bytes.max(peak(work.together()));
            is_live[*node] = true;
            live += size(*node);
        }
        // What is left are the outputs, which are copied one by one, each going once it is copied.
        let largest = (0..is_live.len()).filter(|node| is_live[*node]).map(size).max();
        let leaving = live + largest.unwrap_or(0);
        footprint.alone_bytes = footprint.alone_bytes.max(leaving);
        footprint.together_bytes = footprint.together_bytes.max(leaving);
        footprint
    }

    /// Binds the model's symbols to the inputs' shapes.
    pub fn bind(&self, inputs: &[Vec<usize>]) -> SymbolValues {
        let mut symbols = SymbolValues::default();
        for (shape, sizes) in self.inputs.iter().zip(inputs) {
            for (dim, size) in shape.iter().zip(sizes) {
                if let TDim::Sym(symbol) = dim {
                    symbols.set(symbol, *size as i64);
                }
            }
        }
        self.rows.iter().for_each(|rows| rows.bind_usual(&mut symbols));
        symbols
    }
}

/// A size in bytes. What the symbols do not decide yet, since values will, counts as nothing: it is
/// asked for once it is known (`lockstep`). So does what there will never be, since its node refuses
/// inputs that do not go together.
fn bytes_of(size: &TDim, symbols: &SymbolValues) -> u64 {
    let is_known = |symbol: &Symbol| symbols.get(symbol).is_some();
    match size.maybe_eval_to_i64(symbols) {
        Some(bytes) => u64::try_from(bytes).unwrap_or(0).min(MOST_BYTES),
        None if !size.symbols().iter().all(is_known) || is_at_odds(size, symbols) => 0,
        // It overflows.
        None => MOST_BYTES,
    }
}

/// Whether sizes that are to be the same, or 1, are not.
fn is_at_odds(size: &TDim, symbols: &SymbolValues) -> bool {
    let within = |terms: &[TDim]| terms.iter().any(|term| is_at_odds(term, symbols));
    let is_some = |term: &TDim| term.maybe_eval_to_i64(symbols).is_some();
    match size {
        TDim::Val(_) | TDim::Sym(_) => false,
        TDim::Broadcast(terms) => within(terms) || (terms.iter().all(is_some) && !is_some(size)),
        TDim::Add(terms) | TDim::Mul(terms) | TDim::Min(terms) | TDim::Max(terms) => within(terms),
        TDim::Div(of, _) | TDim::MulInt(_, of) => is_at_odds(of, symbols),
        TDim::Ge(one, other) | TDim::Eq(one, other) => {
            is_at_odds(one, symbols) || is_at_odds(other, symbols)
        }
    }
}
