//! Sizes of made-up inputs that agree with each other, by what the plan says of shapes.
//!
//! A model with several open dimensions does not take any: of a decoder that is given keys and
//! values of the past, the mask is as long as what is past and what is new together.

use std::collections::HashSet;
use tract_core::internal::*;

/// How long an open dimension is made, by the tokens of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Tokens,
    /// What is past, and as much that is new.
    TwiceTokens,
    /// What is past, and one more.
    OneMore,
    One,
}

const LENGTHS: [Length; 4] = [Length::Tokens, Length::TwiceTokens, Length::OneMore, Length::One];

impl Length {
    fn of(self, tokens: usize) -> usize {
        match self {
            Length::Tokens => tokens,
            Length::TwiceTokens => tokens.saturating_mul(2),
            Length::OneMore => tokens.saturating_add(1),
            Length::One => 1,
        }
    }
}

/// Most open dimensions that are all varied; of more, two at a time are, and of many, one.
const MOST_VARIED: usize = 4;
const MOST_PAIRED: usize = 32;

/// Tokens for which a choice has to agree with itself: few enough to tell a sum from what is sought,
/// and none that is 1, which agrees with all.
const TRIED_TOKENS: [usize; 2] = [3, 16];

/// What the shapes of a plan ask of the sizes of its inputs.
pub struct Sizes {
    /// The shapes of the plan's inputs.
    inputs: Vec<TVec<TDim>>,
    symbols: Vec<Symbol>,
    /// Different sizes of values within that say more than one of the inputs'.
    demands: Vec<TDim>,
}

/// One way to choose the open dimensions: a length for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(Vec<Length>);

impl Sizes {
    /// Looks at a plan.
    pub fn of(plan: &TypedSimplePlan) -> Sizes {
        let model = plan.model();
        let fact = |outlet: &OutletId| &model.node(outlet.node).outputs[outlet.slot].fact;
        let inputs: Vec<TVec<TDim>> =
            model.inputs.iter().map(|outlet| fact(outlet).shape.to_tvec()).collect();
        let outputs = model.nodes.iter().flat_map(|node| &node.outputs);
        Sizes::new(inputs, outputs.flat_map(|output| output.fact.shape.iter()))
    }

    fn new<'a>(inputs: Vec<TVec<TDim>>, within: impl Iterator<Item = &'a TDim>) -> Sizes {
        let symbols: HashSet<Symbol> = inputs.iter().flatten().flat_map(TDim::symbols).collect();
        let demands: HashSet<TDim> = within
            .filter(|dim| !matches!(dim, TDim::Val(_) | TDim::Sym(_)))
            // What data decides is known of no made-up input.
            .filter(|dim| dim.symbols().is_subset(&symbols))
            .cloned()
            .collect();
        let mut symbols: Vec<Symbol> = symbols.into_iter().collect();
        symbols.sort_by_key(ToString::to_string);
        Sizes { inputs, symbols, demands: demands.into_iter().collect() }
    }

    /// Choices that agree with all that is known of the plan's shapes, the plainest first, at most
    /// `limit`.
    pub fn choices(&self, limit: usize) -> Vec<Choice> {
        let agrees = |choice: &Choice| TRIED_TOKENS.iter().all(|t| self.agrees(choice, *t));
        self.candidates().into_iter().filter(agrees).take(limit).collect()
    }

    /// The plainest choice that agrees, or where none does, the plainest of all.
    pub fn plainest(&self) -> Choice {
        let all_alike = || Choice(vec![Length::Tokens; self.symbols.len()]);
        self.choices(1).pop().unwrap_or_else(all_alike)
    }

    /// The shapes of the plan's inputs by a choice; none where one of them is no shape.
    pub fn shapes(&self, choice: &Choice, tokens: usize) -> Option<Vec<Vec<usize>>> {
        let values = self.values(choice, tokens);
        let size =
            |dim: &TDim| dim.eval_to_i64(&values).ok().and_then(|size| usize::try_from(size).ok());
        self.inputs.iter().map(|shape| shape.iter().map(size).collect()).collect()
    }

    /// Every choice, in the order of how many dimensions are no plain number of tokens.
    fn candidates(&self) -> Vec<Choice> {
        let count = self.symbols.len();
        let mut found = vec![Choice(vec![Length::Tokens; count])];
        let most = match count {
            _ if count <= MOST_VARIED => count,
            _ if count <= MOST_PAIRED => 2,
            _ => 1,
        };
        let mut begin = 0;
        for _ in 0..most {
            let end = found.len();
            for from in begin..end {
                let Choice(lengths) = found[from].clone();
                // Behind the last that is varied already, so that each comes once.
                let first = lengths.iter().rposition(|l| *l != Length::Tokens).map_or(0, |l| l + 1);
                for at in first..count {
                    for length in &LENGTHS[1..] {
                        let mut lengths = lengths.clone();
                        lengths[at] = *length;
                        found.push(Choice(lengths));
                    }
                }
            }
            begin = end;
        }
        found
    }

    /// What the plan's symbols stand for by a choice.
    pub fn values(&self, Choice(lengths): &Choice, tokens: usize) -> SymbolValues {
        let mut values = SymbolValues::default();
        for (symbol, length) in self.symbols.iter().zip(lengths) {
            values.set(symbol, i64::try_from(length.of(tokens)).unwrap_or(i64::MAX));
        }
        values
    }

    fn agrees(&self, choice: &Choice, tokens: usize) -> bool {
        let values = self.values(choice, tokens);
        let is_size = |dim: &TDim, least: i64| dim.eval_to_i64(&values).is_ok_and(|d| d >= least);
        self.inputs.iter().flatten().all(|dim| is_size(dim, 1))
            && self.demands.iter().all(|dim| is_size(dim, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of inputs of `shapes` for 7 tokens, where `demands` are made on their symbols.
    fn check(shapes: &[&[&str]], demands: &[&str], expected: Option<&[&[usize]]>) {
        let scope = SymbolScope::default();
        let parse = |text: &&str| scope.parse_tdim(text.trim()).unwrap();
        let inputs = shapes.iter().map(|shape| shape.iter().map(parse).collect()).collect();
        let equal = |text: &&str| {
            let sides = text.split('=').map(|side| parse(&side));
            sides.reduce(|one, other| one.broadcast(other).unwrap()).unwrap()
        };
        let demands: Vec<TDim> = demands.iter().map(equal).collect();
        let sizes = Sizes::new(inputs, demands.iter());
        let choices = sizes.choices(1);
        let found = choices.first().and_then(|choice| sizes.shapes(choice, 7));
        assert_eq!(found, expected.map(|s| s.iter().map(|s| s.to_vec()).collect()), "{shapes:?}");
    }

    #[test]
    fn sizes_agree_with_what_shapes_ask_for() {
        check(&[&["1", "S"], &["1", "S"]], &[], Some(&[&[1, 7], &[1, 7]]));
        // As optimum names them: the mask's length is a sum.
        let past: &[&[&str]] = &[&["1", "S"], &["1", "P+S"], &["1", "2", "P", "8"]];
        check(past, &["P+S"], Some(&[&[1, 7], &[1, 14], &[1, 2, 7, 8]]));
        // As others do: it has a name of its own, and is added to scores.
        let named: &[&[&str]] = &[&["1", "S"], &["1", "T"], &["1", "2", "P", "8"]];
        check(named, &["T = P+S"], Some(&[&[1, 7], &[1, 14], &[1, 2, 7, 8]]));
        // One token at a time.
        let one: &[&[&str]] = &[&["1", "1"], &["1", "T"], &["1", "2", "P", "8"]];
        check(one, &["T = P+1"], Some(&[&[1, 1], &[1, 8], &[1, 2, 7, 8]]));
        check(&[&["P+1"], &["P"]], &[], Some(&[&[8], &[7]]));
        check(&[&["S"], &["T"]], &["S+1 = T+1000"], None);
        check(&[], &[], Some(&[]));
    }
}
