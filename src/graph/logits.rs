//! Of how many of its new tokens a decoder gives the logits. A graph that is drawn here gives those of
//! its last few, so that proposals can be looked at; but a prompt needs those of its last token alone,
//! and its parts before the last need none. So the slice in front of the logits gets an open size,
//! which each request binds. Where that is 0, a pass ends before what only logits need, so that
//! their weights are not leased.

use super::attention::Append;
use std::collections::HashSet;
use tract_core::internal::*;
use tract_core::ops::array::Slice;

/// The open size.
const SYMBOL: &str = "logits_rows";

/// A property of the model: how many there are where nobody says so, by the sizes of inputs.
const USUAL: &str = "hermes.logits_rows";

/// Opens that size in the graph of a decoder that is drawn here; any other stays as it is.
pub fn open(model: &mut TypedModel) -> TractResult<()> {
    let is_drawn = model.nodes.iter().any(|node| node.op_is::<Append>());
    if !is_drawn || model.symbols.get(SYMBOL).is_some() {
        return Ok(());
    }
    let lasts: Vec<(usize, Slice)> =
        model.nodes.iter().filter_map(|node| Some((node.id, last(model, node)?))).collect();
    let [(node, slice)] = &lasts[..] else { return Ok(()) };
    let rows = model.symbols.sym(SYMBOL);
    let usual = slice.end.clone() - &slice.start;
    model.properties.insert(USUAL.to_string(), tensor0(usual).into_arc_tensor());
    let start = slice.end.clone() - rows.to_dim();
    model.nodes[*node].op = Box::new(Slice { start, ..slice.clone() });
    model.refresh_output_facts()
}

/// The last ones of the new tokens, `[1, new, width]`, where a node takes these.
fn last(model: &TypedModel, node: &TypedNode) -> Option<Slice> {
    let slice = node.op_as::<Slice>().filter(|slice| slice.axis == 1)?;
    let fact = model.outlet_fact(node.inputs[0]).ok()?;
    let is_last = fact.rank() == 3 && fact.shape[1] == slice.end && slice.end.as_i64().is_none();
    (is_last && !slice.start.symbols().is_empty()).then(|| slice.clone())
}

/// The open size of a model's logits.
#[derive(Clone, Debug)]
pub struct LogitsRows {
    symbol: Symbol,
    usual: TDim,
}

impl LogitsRows {
    /// Of a model in which it was opened.
    pub fn of(model: &TypedModel) -> Option<LogitsRows> {
        let usual = model.properties.get(USUAL)?;
        let usual = usual.try_as_plain_ram().ok()?.as_slice::<TDim>().ok()?.first()?.clone();
        Some(LogitsRows { symbol: model.symbols.get(SYMBOL)?, usual })
    }

    /// Binds it to `rows`, or as many as there are usually, if those are fewer.
    pub fn bind(&self, symbols: &mut SymbolValues, rows: usize) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        if let Some(usual) = self.usual.maybe_eval_to_i64(symbols) {
            symbols.set(&self.symbol, usual.min(rows));
        }
    }

    /// Binds it to how many there are usually, where nobody said so.
    pub fn bind_usual(&self, symbols: &mut SymbolValues) {
        if symbols.get(&self.symbol).is_none() {
            self.bind(symbols, usize::MAX);
        }
    }

    /// After how many steps of a plan all outputs are there but those that have this size.
    pub fn steps_before(&self, plan: &TypedSimplePlan) -> usize {
        let model = plan.model();
        let has_size = |outlet: &OutletId| {
            let dims = &model.node(outlet.node).outputs[outlet.slot].fact.shape;
            dims.iter().any(|dim| dim.symbols().contains(&self.symbol))
        };
        let others = model.outputs.iter().filter(|outlet| !has_size(outlet));
        let mut left: Vec<usize> = others.map(|outlet| outlet.node).collect();
        let mut needed = HashSet::new();
        while let Some(node) = left.pop() {
            if needed.insert(node) {
                left.extend(model.node(node).inputs.iter().map(|input| input.node));
            }
        }
        let order = plan.order_without_consts();
        order.iter().rposition(|node| needed.contains(node)).map_or(0, |last| last + 1)
    }
}
