//! Keys or values that a session keeps: with room for what it will read, so that what is new is put
//! behind what is there and nothing is copied. A layer that sees the last few tokens keeps no others:
//! their slots are used again.

use super::Append;
use super::heads::BLOCK;
use super::new::NewHeads;
use crate::sys::lock::lock;
use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard};
use tract_core::internal::*;

/// Most new tokens of a pass that appends where slots are used again.
pub const MOST_NEW: usize = 256;

/// How a session keeps the past of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// How many tokens each one sees, itself among them; none for all before it.
    window: Option<usize>,
    /// The output that the past comes out by.
    pub present: usize,
}

/// By input of a plan, how it is kept; none where it is handed in as an array.
pub fn keeping_of(model: &TypedModel) -> Vec<Option<Keeping>> {
    let keeping = |input: &OutletId| {
        let [reader] = model.outlet_successors(*input) else { return None };
        let op = model.node(reader.node).op_as::<Append>().filter(|_| reader.slot == 1)?;
        let present = OutletId::new(reader.node, 0);
        let present = model.outputs.iter().position(|output| *output == present)?;
        Some(Keeping { window: op.window, present })
    };
    model.inputs.iter().map(keeping).collect()
}

impl Keeping {
    /// Slots in which a text of so many tokens is kept.
    pub fn slots(&self, tokens: usize) -> usize {
        let most = self.window.map(|window| (window + MOST_NEW).next_multiple_of(BLOCK));
        most.map_or(tokens, |most| tokens.min(most))
    }
}

/// Keys or values that are kept, as a tensor's storage: its shape tells how many tokens' it is.
#[derive(Clone)]
pub struct KeptPast(Arc<Mutex<Slots>>);

/// Where the elements lie: `[heads, capacity, width]`, token t in slot `t % capacity`.
pub struct Slots {
    heads: usize,
    width: usize,
    capacity: usize,
    window: usize,
    /// Most tokens there ever were.
    most: usize,
    values: Vec<f32>,
}

impl KeptPast {
    /// No token, and room for none, as a tensor `[1, heads, 0, width]`.
    pub fn none(keeping: &Keeping, heads: usize, width: usize) -> Tensor {
        let window = keeping.window.unwrap_or(usize::MAX);
        Slots { heads, width, capacity: 0, window, most: 0, values: vec![] }.into_tensor(0)
    }

    /// The slots, for whoever computes with them.
    pub(super) fn open(&self) -> MutexGuard<'_, Slots> {
        lock(&self.0)
    }

    /// What is new behind a past of that shape, as the tensor of both.
    pub(super) fn appended(&self, past: &[usize], new: &NewHeads) -> TractResult<Tensor> {
        let &[_, heads, tokens, width] = past else { bail!("a past of shape {past:?}") };
        self.open().append(tokens, new)?;
        let shape = [1, heads, tokens + new.tokens, width];
        Ok(Tensor::from_storage(f32::datum_type(), &shape, self.clone()))
    }

    /// Bytes that the tensor holds; none where it is no past that is kept.
    pub fn bytes_of(past: &Tensor) -> Option<u64> {
        let kept = past.storage_as::<KeptPast>()?;
        Some(kept.open().bytes())
    }

    /// Whether what follows the first so many tokens has all that it sees.
    pub fn can_cut(past: &Tensor, tokens: usize) -> bool {
        past.storage_as::<KeptPast>().is_none_or(|kept| kept.open().has(tokens))
    }

    /// The first so many tokens, in the same slots: who goes on from there writes over what follows.
    pub fn cut(past: &Tensor, tokens: usize) -> TractResult<Tensor> {
        let kept = past.try_storage_as::<KeptPast>()?;
        ensure!(kept.open().has(tokens), "{tokens} tokens' past is gone");
        let mut shape = past.shape().to_vec();
        shape[2] = tokens;
        Ok(Tensor::from_storage(f32::datum_type(), &shape, kept.clone()))
    }

    /// A copy of the first `tokens`, with room for a text of `room` of them.
    pub fn copied(
        past: &Tensor,
        keeping: &Keeping,
        tokens: usize,
        room: usize,
    ) -> TractResult<Tensor> {
        let kept = past.try_storage_as::<KeptPast>()?.open();
        ensure!(kept.has(tokens), "{tokens} tokens' past is gone");
        let capacity = keeping.slots(room.max(tokens));
        let values = vec![0.0; kept.heads * capacity * kept.width];
        let mut copy = Slots { capacity, most: tokens, values, ..*kept };
        let first = tokens.saturating_sub(capacity);
        for token in first.max(kept.most.saturating_sub(kept.capacity))..tokens {
            for head in 0..kept.heads {
                let (from, to) = (kept.slot(head, token), copy.slot(head, token));
                let width = kept.width;
                copy.values[to..to + width].copy_from_slice(&kept.values[from..from + width]);
            }
        }
        Ok(copy.into_tensor(tokens))
    }
}

impl Slots {
    fn into_tensor(self, tokens: usize) -> Tensor {
        let shape = [1, self.heads, tokens, self.width];
        Tensor::from_storage(f32::datum_type(), &shape, KeptPast(Arc::new(Mutex::new(self))))
    }

    fn bytes(&self) -> u64 {
        (self.values.len() * size_of::<f32>()) as u64
    }

    /// Slots of a head.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All of them, head by head.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Whether all is there that what follows so many tokens sees.
    fn has(&self, tokens: usize) -> bool {
        let first_seen = (tokens + 1).saturating_sub(self.window);
        tokens <= self.most && first_seen + self.capacity >= self.most
    }

    fn slot(&self, head: usize, token: usize) -> usize {
        (head * self.capacity + token % self.capacity) * self.width
    }

    /// Puts what is new behind the first `past` tokens.
    fn append(&mut self, past: usize, new: &NewHeads) -> TractResult<()> {
        let &NewHeads { tokens: count, heads, width, .. } = new;
        let is_alike = [heads, width] == [self.heads, self.width];
        ensure!(is_alike, "{heads} heads of {width} behind {} of {}", self.heads, self.width);
        let seen = self.window.min(past + 1) - 1;
        ensure!(
            self.has(past) && seen + count <= self.capacity,
            "{past} tokens and {count} have no room in {} slots",
            self.capacity
        );
        for head in 0..heads {
            for token in 0..count {
                let at = self.slot(head, past + token);
                new.put(head, token, &mut self.values[at..at + width]);
            }
        }
        self.most = self.most.max(past + count);
        Ok(())
    }
}

impl PartialEq for KeptPast {
    fn eq(&self, other: &KeptPast) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for KeptPast {}

impl fmt::Debug for KeptPast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a past that is kept")
    }
}

impl fmt::Display for KeptPast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl TensorStorage for KeptPast {
    fn byte_len(&self) -> usize {
        self.open().values.len() * size_of::<f32>()
    }

    fn is_empty(&self) -> bool {
        self.open().values.is_empty()
    }

    /// The same slots: a session's are its own, and copied by nobody but itself.
    fn deep_clone(&self) -> Box<dyn TensorStorage> {
        Box::new(self.clone())
    }

    fn as_plain_ram(&self) -> Option<&PlainStorage> {
        None
    }

    fn as_plain_ram_mut(&mut self) -> Option<&mut PlainStorage> {
        None
    }

    fn into_plain_ram(self: Box<Self>) -> Option<PlainStorage> {
        None
    }

    fn dyn_hash(&self, state: &mut dyn Hasher) {
        state.write_usize(Arc::as_ptr(&self.0) as usize);
    }

    fn exotic_fact(&self, _shape: &[usize]) -> TractResult<Option<Box<dyn ExoticFact>>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A token's keys: by their numbers it is told from others.
    fn keys(range: std::ops::Range<usize>) -> Tensor {
        let heads = |token: usize| (0..2).map(move |head| (1000 * head + token) as f32);
        let values: Vec<f32> = range.clone().flat_map(heads).collect();
        Tensor::from_shape(&[1, range.len(), 2], &values).unwrap()
    }

    fn append(past: &Tensor, tokens: usize, new: &Tensor) -> TractResult<()> {
        kept(past).open().append(tokens, &NewHeads::of(new, 1, None, &[])?)
    }

    fn kept(past: &Tensor) -> KeptPast {
        past.storage_as::<KeptPast>().unwrap().clone()
    }

    /// That all is there which the next token sees.
    fn check(past: &Tensor, window: Option<usize>) {
        let tokens = past.shape()[2];
        let kept = kept(past);
        let slots = kept.open();
        let first = (tokens + 1).saturating_sub(window.unwrap_or(usize::MAX));
        for (head, token) in (0..2).flat_map(|head| (first..tokens).map(move |token| (head, token)))
        {
            assert_eq!(slots.values[slots.slot(head, token)], (1000 * head + token) as f32);
        }
    }

    proptest! {
        #[test]
        fn what_is_in_sight_is_there(
            window in prop_oneof![Just(None), (1..40usize).prop_map(Some)],
            steps in prop::collection::vec((1..=MOST_NEW, 0..300usize), 1..8),
        ) {
            let keeping = Keeping { window, present: 0 };
            let room = steps.iter().map(|(new, _)| new).sum();
            let past = KeptPast::none(&keeping, 2, 1);
            let mut past = KeptPast::copied(&past, &keeping, 0, room).unwrap();
            for (new, back) in steps {
                let tokens = past.shape()[2];
                append(&past, tokens, &keys(tokens..tokens + new)).unwrap();
                let most = tokens + new;
                past = KeptPast::cut(&past, most).unwrap();
                check(&past, window);
                let fewer = most.saturating_sub(back);
                if KeptPast::can_cut(&past, fewer) {
                    let copy = KeptPast::copied(&past, &keeping, fewer, fewer).unwrap();
                    check(&copy, window);
                    past = KeptPast::cut(&past, fewer).unwrap();
                    check(&past, window);
                } else {
                    prop_assert!(window.is_some());
                    prop_assert!(KeptPast::cut(&past, fewer).is_err());
                }
            }
        }
    }

    #[test]
    fn windows_bound_what_is_kept() {
        let slots = |window, tokens| Keeping { window, present: 0 }.slots(tokens);
        assert_eq!(slots(None, 5000), 5000);
        assert_eq!(slots(Some(512), 5000), 768);
        assert_eq!(slots(Some(512), 600), 600);
        let keeping = Keeping { window: Some(2), present: 0 };
        let past = KeptPast::copied(&KeptPast::none(&keeping, 2, 1), &keeping, 0, 3).unwrap();
        let error = append(&past, 0, &keys(0..4)).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        assert_eq!(KeptPast::bytes_of(&past), Some(24));
    }
}
