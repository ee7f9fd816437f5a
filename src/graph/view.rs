//! What the graph does to a weight between its source and the product that eats it.

use tract_core::internal::*;
use tract_core::ops::cast::Cast;
use tract_core::ops::change_axes::AxisOp;
use tract_core::ops::identity::Identity;

/// A weight seen through a chain of axis changes and casts.
///
/// A cast that keeps every value (f16 to f32) is looked through: variants hold what they hold in
/// any float type. All other casts change values, and everything after the first of them is theirs.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightView {
    /// Index of the weight.
    pub weight: usize,
    /// For each axis of the view the source axis it shows, or `None` for an inserted axis of 1.
    pub axes: Vec<Option<usize>>,
    /// Axes of the weight itself.
    pub source_rank: usize,
    /// Element type of the weight, or the wider one that it is cast to before anything else.
    pub dtype: DatumType,
    /// The types it is cast to from there on, which may change its values.
    pub casts: TVec<DatumType>,
}

impl WeightView {
    /// Follows `outlet` upwards through axis changes and casts to a weight; `None` where it
    /// comes from anything else or where a reshape mixes axes.
    pub fn trace(
        model: &TypedModel,
        outlet: OutletId,
        weight_of: &impl Fn(usize) -> Option<usize>,
    ) -> Option<WeightView> {
        let node = model.node(outlet.node);
        if let Some(weight) = weight_of(outlet.node) {
            let fact = model.outlet_fact(outlet).ok()?;
            return Some(WeightView::whole(weight, fact.rank(), fact.datum_type));
        }
        let &[input] = &*node.inputs else { return None };
        let mut view = WeightView::trace(model, input, weight_of)?;
        if let Some(cast) = node.op_as::<Cast>() {
            view.cast(cast.to);
        } else if let Some(change) = node.op_as::<AxisOp>() {
            view.apply(change)?;
        } else if !node.op_is::<Identity>() {
            return None;
        }
        Some(view)
    }

    fn whole(weight: usize, rank: usize, dtype: DatumType) -> WeightView {
        let axes = (0..rank).map(Some).collect();
        WeightView { weight, axes, source_rank: rank, dtype, casts: tvec![] }
    }

    fn cast(&mut self, to: DatumType) {
        let is_wider = (self.dtype, to) == (DatumType::F16, DatumType::F32);
        match self.casts.last().copied().unwrap_or(self.dtype) {
            same if same == to => {}
            _ if is_wider && self.casts.is_empty() => self.dtype = to,
            _ => self.casts.push(to),
        }
    }

    fn apply(&mut self, change: &AxisOp) -> Option<()> {
        match change {
            AxisOp::Add(at) => self.axes.insert(*at, None),
            AxisOp::Rm(at) => {
                self.axes.remove(*at);
            }
            AxisOp::Move(from, to) => {
                let axis = self.axes.remove(*from);
                self.axes.insert(*to, axis);
            }
            AxisOp::Reshape(..) => return None,
        }
        Some(())
    }

    /// Whether the view is the source itself, but for casts.
    pub fn is_identity(&self) -> bool {
        self.axes.iter().enumerate().all(|(i, axis)| *axis == Some(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[AxisOp], expected: Option<&[Option<usize>]>) {
        let mut view = WeightView::whole(0, 2, DatumType::F32);
        let applied: Option<Vec<()>> = changes.iter().map(|c| view.apply(c)).collect();
        assert_eq!(applied.map(|_| view.axes), expected.map(|e| e.to_vec()), "{changes:?}");
    }

    /// Casts of i32 to f32 read the bits of integers as floats, and casts to i32 and back were
    /// skipped: every cast was looked through.
    #[test]
    fn casts_that_keep_values_are_looked_through_and_others_kept() {
        use DatumType::{Bool, F16, F32, I8, I32};
        let check = |from: DatumType, casts: &[DatumType], dtype, kept: &[DatumType]| {
            let mut view = WeightView::whole(0, 2, from);
            casts.iter().for_each(|to| view.cast(*to));
            assert_eq!((view.dtype, &*view.casts), (dtype, kept), "{from:?} to {casts:?}");
        };
        check(F32, &[], F32, &[]);
        check(F16, &[F32], F32, &[]);
        check(F32, &[F32, F32], F32, &[]);
        check(I32, &[F32], I32, &[F32]);
        check(I8, &[F32, F32], I8, &[F32]);
        check(F32, &[I32, F32], F32, &[I32, F32]);
        check(F16, &[F32, I32, F32], F32, &[I32, F32]);
        check(F32, &[F16, F32], F32, &[F16, F32]);
        check(F32, &[Bool, F32], F32, &[Bool, F32]);
    }

    #[test]
    fn axis_changes_are_followed_and_reshapes_refused() {
        check(&[], Some(&[Some(0), Some(1)]));
        check(&[AxisOp::Move(0, 1)], Some(&[Some(1), Some(0)]));
        check(&[AxisOp::Add(0), AxisOp::Move(2, 1)], Some(&[None, Some(1), Some(0)]));
        check(&[AxisOp::Add(1), AxisOp::Rm(1)], Some(&[Some(0), Some(1)]));
        check(&[AxisOp::Reshape(0, tvec![], tvec![])], None);
    }
}
