//! What the graph does to a weight between its source and the product that eats it.

use tract_core::internal::*;
use tract_core::ops::cast::Cast;
use tract_core::ops::change_axes::AxisOp;
use tract_core::ops::identity::Identity;

/// A weight seen through a chain of axis changes and casts.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightView {
    /// Index of the weight.
    pub weight: usize,
    /// For each axis of the view the source axis it shows, or `None` for an inserted axis of 1.
    pub axes: Vec<Option<usize>>,
    /// The last cast on the way, if any.
    pub cast: Option<DatumType>,
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
            let rank = model.outlet_fact(outlet).ok()?.rank();
            return Some(WeightView { weight, axes: (0..rank).map(Some).collect(), cast: None });
        }
        let &[input] = &*node.inputs else { return None };
        let mut view = WeightView::trace(model, input, weight_of)?;
        if let Some(cast) = node.op_as::<Cast>() {
            view.cast = Some(cast.to);
        } else if let Some(change) = node.op_as::<AxisOp>() {
            view.apply(change)?;
        } else if !node.op_is::<Identity>() {
            return None;
        }
        Some(view)
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

    /// Whether the view is the source itself, but for a cast.
    pub fn is_identity(&self) -> bool {
        self.axes.iter().enumerate().all(|(i, axis)| *axis == Some(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[AxisOp], expected: Option<&[Option<usize>]>) {
        let mut view = WeightView { weight: 0, axes: vec![Some(0), Some(1)], cast: None };
        let applied: Option<Vec<()>> = changes.iter().map(|c| view.apply(c)).collect();
        assert_eq!(applied.map(|_| view.axes), expected.map(|e| e.to_vec()), "{changes:?}");
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
