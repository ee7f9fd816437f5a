//! Ops of tract that address elements by what a request's values say, checked before they do.
//!
//! tract takes an index as it comes: beyond its axis the op panics, or reads a neighbour's element;
//! some negative ones, which ONNX counts from the end, it refuses; of k elements that are not there
//! it makes zeros, and of what a reflection is wider than. Here such a request is refused, and what
//! ONNX defines is computed, sums of nothing included. Where elements are picked by comparing them,
//! NaN is the greatest.

use super::ordered::by_order;
use super::position::position;
use tract_core::internal::*;
use tract_core::ops::array::{
    DynSlice, DynTile, Gather, GatherElements, GatherNd, OneHot, Pad, PadMode, Range,
    ScatterElements, ScatterNd, Slice, Topk,
};
use tract_core::ops::cast::Cast;
use tract_core::ops::cnn::{MaxPool, OptMaxPool};
use tract_core::ops::nn::{Reduce, Reducer};

/// An op of tract, evaluated once its inputs make sense.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Checked {
    Gather(Gather),
    GatherElements(GatherElements),
    GatherNd(GatherNd),
    ScatterElements(ScatterElements),
    ScatterNd(ScatterNd),
    OneHot(OneHot),
    Topk(Topk),
    Slice(DynSlice),
    Tile(DynTile),
    Range(Range),
    Cast(Cast),
    MaxPool(MaxPool),
    OptMaxPool(Box<OptMaxPool>),
    Reflect(Pad),
    Sum(Reduce),
}

/// Cuts off what a negative pad takes away, which tract takes for a huge one.
pub fn crop_pads(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = model.node(id);
        let Some(pad) = node.op_as::<Pad>() else { continue };
        let cut = |pad: usize| (-(pad as isize)).max(0) as usize;
        let left = |pad: usize| (pad as isize).max(0) as usize;
        if pad.pads.iter().all(|(before, after)| cut(*before) + cut(*after) == 0) {
            continue;
        }
        let (name, shape) = (&node.name, &model.outlet_fact(node.inputs[0])?.shape);
        let mut patch = TypedModelPatch::default();
        let mut wire = tvec![patch.tap_model(model, node.inputs[0])?];
        for (axis, (before, after)) in pad.pads.iter().enumerate() {
            if cut(*before) + cut(*after) > 0 {
                let slice = Slice::new(axis, cut(*before), shape[axis].clone() - cut(*after));
                wire = patch.wire_node(format!("{name}.crop.{axis}"), slice, &wire)?;
            }
        }
        let pads = pad.pads.iter().map(|(before, after)| (left(*before), left(*after))).collect();
        wire = patch.wire_node(name, Pad { pads, mode: pad.mode.clone() }, &wire)?;
        patch.shunt_outside(model, id.into(), wire[0])?;
        patch.apply(model)?;
    }
    Ok(())
}

impl Checked {
    /// The check around an op, where it needs one.
    pub fn of(op: &dyn TypedOp) -> Option<Checked> {
        let known = [
            op.downcast_ref().cloned().map(Checked::Gather),
            op.downcast_ref().cloned().map(Checked::GatherElements),
            op.downcast_ref().cloned().map(Checked::GatherNd),
            op.downcast_ref().cloned().map(Checked::ScatterElements),
            op.downcast_ref().cloned().map(Checked::ScatterNd),
            op.downcast_ref().cloned().map(Checked::OneHot),
            op.downcast_ref().cloned().map(Checked::Topk),
            op.downcast_ref().cloned().map(Checked::Slice),
            op.downcast_ref().cloned().map(Checked::Tile),
            op.downcast_ref().cloned().map(Checked::Range),
            op.downcast_ref().filter(|op: &&Cast| op.to.is_tdim()).cloned().map(Checked::Cast),
            op.downcast_ref().cloned().map(Checked::MaxPool),
            op.downcast_ref().cloned().map(Box::new).map(Checked::OptMaxPool),
            op.downcast_ref().filter(|op| reflects(op)).cloned().map(Checked::Reflect),
            op.downcast_ref().filter(|op| adds(op)).cloned().map(Checked::Sum),
        ];
        known.into_iter().flatten().next()
    }

    fn inner(&self) -> &dyn TypedOp {
        match self {
            Checked::Gather(op) => op,
            Checked::GatherElements(op) => op,
            Checked::GatherNd(op) => op,
            Checked::ScatterElements(op) => op,
            Checked::ScatterNd(op) => op,
            Checked::OneHot(op) => op,
            Checked::Topk(op) => op,
            Checked::Slice(op) => op,
            Checked::Tile(op) => op,
            Checked::Range(op) => op,
            Checked::Cast(op) => op,
            Checked::MaxPool(op) => op,
            Checked::OptMaxPool(op) => &**op,
            Checked::Reflect(op) => op,
            Checked::Sum(op) => op,
        }
    }

    /// Checks the inputs, and puts those that tract would take otherwise as it takes them.
    fn prepare(&self, symbols: &SymbolValues, inputs: &mut [TValue]) -> TractResult<()> {
        match (self, inputs) {
            (Checked::Gather(Gather { axis, .. }), [data, indices])
            | (Checked::GatherElements(GatherElements { axis }), [data, indices])
            | (Checked::ScatterElements(ScatterElements { axis, .. }), [data, indices, _]) => {
                let length = *data.shape().get(*axis).context("data has no such axis")?;
                check_along(indices, length)
            }
            (Checked::GatherNd(GatherNd { batch_dims }), [data, indices]) => {
                let shape = data.shape().get(*batch_dims..).context("data has too few axes")?;
                *indices = coordinates(indices, shape)?;
                Ok(())
            }
            (Checked::ScatterNd(_), [data, indices, _]) => {
                *indices = coordinates(indices, data.shape())?;
                Ok(())
            }
            (Checked::Topk(op), [data, k]) => {
                let (k, length) = (k.cast_to_scalar::<i64>()?, data.shape()[op.axis]);
                let is_there = usize::try_from(k).is_ok_and(|k| k <= length);
                ensure!(is_there, "the top {k} of {length} elements");
                Ok(())
            }
            (Checked::Tile(_), [_, repeats]) => {
                let repeats = numbers(repeats, symbols)?;
                let negative = repeats.iter().find(|times| **times < 0);
                ensure!(negative.is_none(), "to be repeated {repeats:?} times");
                Ok(())
            }
            (Checked::Reflect(Pad { pads, .. }), [data]) => {
                for ((before, after), length) in pads.iter().zip(data.shape()) {
                    let pad = *before.max(after);
                    let is_there = pad == 0 || pad < *length;
                    ensure!(is_there, "a reflection of {pad} elements beside {length}");
                }
                Ok(())
            }
            // Of open dimensions tract takes the distance, whichever way it goes.
            (Checked::Range(_), [start, end, step]) if start.datum_type().is_tdim() => {
                let [from, to, by] = [start, &mut *end, step].map(|value| scalar(value, symbols));
                let (from, to, by) = (from?, to?, by?);
                ensure!(by != 0, "a range from {from} to {to} in steps of 0");
                if (to > from) != (by > 0) {
                    *end = tensor0(TDim::Val(from)).into_tvalue();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Op for Checked {
    fn name(&self) -> StaticName {
        self.inner().name()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.inner().mints_runtime_symbols()
    }

    fn required_bound_symbols(&self, inputs: &[&TypedFact]) -> TVec<Symbol> {
        self.inner().required_bound_symbols(inputs)
    }

    op_as_typed_op!();
}

impl EvalOp for Checked {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        match self {
            Checked::OneHot(op) => {
                let indices = args_1!(inputs);
                Ok(tvec!(one_hot(op, &indices)?.into_tvalue()))
            }
            Checked::Slice(op) => {
                let (data, start, end) = args_3!(inputs);
                let bounds = (scalar(&start, context.symbols)?, scalar(&end, context.symbols)?);
                Ok(tvec!(slice(op, context.symbols, &data, bounds)?.into_tvalue()))
            }
            Checked::Cast(_) if !inputs[0].datum_type().is_tdim() => {
                Ok(tvec!(sizes(&inputs[0])?.into_tvalue()))
            }
            Checked::Sum(op) if inputs[0].shape().contains(&0) => {
                Ok(tvec!(sum_of_nothing(op, &inputs[0])?.into_tvalue()))
            }
            Checked::Topk(_) | Checked::MaxPool(_) | Checked::OptMaxPool(_) => {
                self.prepare(context.symbols, &mut inputs)?;
                by_order(inputs, &|inputs| self.inner().eval(context, inputs))
            }
            _ => {
                self.prepare(context.symbols, &mut inputs)?;
                self.inner().eval(context, inputs)
            }
        }
    }
}

impl TypedOp for Checked {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.inner().output_facts(inputs)
    }

    fn axes_mapping(
        &self,
        inputs: &[&TypedFact],
        outputs: &[&TypedFact],
    ) -> TractResult<AxesMapping> {
        self.inner().axes_mapping(inputs, outputs)
    }

    /// What tract lowers is checked as well.
    fn codegen(
        &self,
        model: &TypedModel,
        node: &TypedNode,
    ) -> TractResult<Option<TypedModelPatch>> {
        let Checked::MaxPool(op) = self else { return Ok(None) };
        let mut patch = op.codegen(model, node)?;
        for node in patch.iter_mut().flat_map(|patch| &mut patch.model.nodes) {
            if let Some(checked) = Checked::of(&*node.op) {
                node.op = Box::new(checked);
            }
        }
        Ok(patch)
    }

    as_op!();
}

fn reflects(op: &Pad) -> bool {
    op.mode == PadMode::Reflect
}

fn adds(op: &Reduce) -> bool {
    matches!(op.reducer, Reducer::Sum | Reducer::MeanOfSquares)
}

/// Tract divides by the number of elements. Their mean is none.
fn sum_of_nothing(op: &Reduce, data: &Tensor) -> TractResult<Tensor> {
    let mut shape: TVec<usize> = data.shape().into();
    op.axes.iter().for_each(|axis| shape[*axis] = 1);
    let sum = if op.reducer == Reducer::Sum { 0.0 } else { f32::NAN };
    tensor0(sum).cast_to_dt(data.datum_type())?.broadcast_scalar_to_shape(&shape)
}

/// Checks indices of one axis.
fn check_along(indices: &Tensor, length: usize) -> TractResult<()> {
    let indices = indices.cast_to::<i64>()?;
    for index in indices.try_as_plain_ram()?.as_slice::<i64>()? {
        position(*index, length)?;
    }
    Ok(())
}

/// Checks rows of coordinates on the first axes of `shape`; none of those that come out is negative.
fn coordinates(indices: &Tensor, shape: &[usize]) -> TractResult<TValue> {
    let mut indices = indices.cast_to::<i64>()?.into_owned();
    let width = *indices.shape().last().context("coordinates are a row at least")?;
    ensure!(width <= shape.len(), "{width} coordinates of a value of shape {shape:?}");
    let mut plain = indices.try_as_plain_ram_mut()?;
    for (place, index) in plain.as_slice_mut::<i64>()?.iter_mut().enumerate() {
        *index = position(*index, shape[place % width])? as i64;
    }
    Ok(indices.into_tvalue())
}

/// An index that is of no class leaves its row off, as ONNX has it.
fn one_hot(op: &OneHot, indices: &Tensor) -> TractResult<Tensor> {
    let mut shape: TVec<usize> = indices.shape().into();
    shape.insert(op.axis, op.dim);
    let inner: usize = indices.shape()[op.axis..].iter().product();
    let mut hot = op.off.broadcast_scalar_to_shape(&shape)?;
    let (size, on) = (hot.datum_type().size_of(), op.on.as_bytes());
    ensure!(hot.datum_type().is_copy() && on.len() == size, "one hot of {:?}", op.on);
    let indices = indices.cast_to::<i64>()?;
    let bytes = hot.as_bytes_mut();
    for (place, index) in indices.try_as_plain_ram()?.as_slice::<i64>()?.iter().enumerate() {
        if let Ok(class) = position(*index, op.dim) {
            let at = ((place / inner * op.dim + class) * inner + place % inner) * size;
            bytes[at..at + size].copy_from_slice(on);
        }
    }
    Ok(hot)
}

/// Bounds beyond the ends are the ends, and the one after the other leaves nothing, as ONNX has it.
pub fn cut(op: &DynSlice, data: &Tensor, (start, end): (i64, i64)) -> TractResult<(usize, usize)> {
    let length = *data.shape().get(op.axis).context("data has no such axis")?;
    let bound = |at: i64| match usize::try_from(at) {
        Ok(at) => at.min(length),
        Err(_) => length.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(length)),
    };
    let (start, end) = (bound(start), bound(end));
    Ok((start, end.max(start)))
}

fn slice(
    op: &DynSlice,
    symbols: &SymbolValues,
    data: &Tensor,
    (start, end): (i64, i64),
) -> TractResult<Tensor> {
    let (start, end) = cut(op, data, (start, end))?;
    if let Ok(expected) = op.len.eval(symbols).to_i64() {
        let is_so = usize::try_from(expected).is_ok_and(|expected| end - start == expected);
        ensure!(is_so, "{start} to {end} are not {expected} elements");
    }
    if start < end {
        return data.slice(op.axis, start, end);
    }
    let mut shape: TVec<usize> = data.shape().into();
    shape[op.axis] = 0;
    Tensor::zero_dt(data.datum_type(), &shape)
}

/// Numbers as sizes, which tract makes of 64-bit integers, and cuts to 32 bits.
fn sizes(numbers: &Tensor) -> TractResult<Tensor> {
    let numbers = numbers.cast_to::<i64>()?;
    let plain = numbers.try_as_plain_ram()?;
    let sizes: Vec<TDim> = plain.as_slice::<i64>()?.iter().map(|n| n.to_dim()).collect();
    tensor1(&sizes).into_shape(numbers.shape())
}

/// A value of one element.
pub fn scalar(value: &Tensor, symbols: &SymbolValues) -> TractResult<i64> {
    numbers(value, symbols)?.first().copied().context("a value of no elements")
}

/// Elements, whole numbers or open sizes, which tract's cast to sizes cuts to 32 bits.
pub fn numbers(values: &Tensor, symbols: &SymbolValues) -> TractResult<Vec<i64>> {
    if !values.datum_type().is_tdim() {
        let values = values.cast_to::<i64>()?;
        return Ok(values.try_as_plain_ram()?.as_slice::<i64>()?.to_vec());
    }
    let sizes = values.try_as_plain_ram()?.as_slice::<TDim>()?;
    sizes.iter().map(|size| Ok(size.eval(symbols).to_i64()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::position::IndexOutOfRange;
    use super::*;
    use tract_core::ops::array::ScatterReduction;

    /// What an op gives, or says.
    fn eval(op: Checked, inputs: &[Tensor]) -> Result<Tensor, String> {
        let inputs = inputs.iter().map(|input| input.clone().into_tvalue()).collect();
        let outputs = op.eval(&EvalContext::out_of_plan(), inputs);
        outputs.map(|mut o| o.remove(0).into_tensor()).map_err(|error| format!("{error:#}"))
    }

    fn ints(values: &[i64], shape: &[usize]) -> Tensor {
        tensor1(values).into_shape(shape).unwrap()
    }

    /// `0..6` in two rows.
    fn data() -> Tensor {
        ints(&[0, 1, 2, 3, 4, 5], &[2, 3])
    }

    fn beyond(index: i64, rows: usize) -> Result<Tensor, String> {
        Err(IndexOutOfRange { index, rows }.to_string())
    }

    /// An index of 3 on the second of two axes of 3 read the next row, and told nobody.
    #[test]
    fn indices_are_within_their_axis() {
        let gather =
            |axis, index| eval(Checked::Gather(Gather::new(axis)), &[data(), ints(&[index], &[1])]);
        assert_eq!(gather(1, -1), Ok(ints(&[2, 5], &[2, 1])));
        assert_eq!(gather(0, 1), Ok(ints(&[3, 4, 5], &[1, 3])));
        for (axis, index, length) in [(1, 3, 3), (1, -4, 3), (0, 2, 2), (0, i64::MIN, 2)] {
            assert_eq!(gather(axis, index), beyond(index, length));
        }
        let elements = |axis, index| {
            let op = Checked::GatherElements(GatherElements::new(axis));
            eval(op, &[data(), ints(&[index, 0, 0], &[1, 3])])
        };
        assert_eq!(elements(0, -1), Ok(ints(&[3, 1, 2], &[1, 3])));
        assert_eq!(elements(0, 2), beyond(2, 2));
        let scatter = |index| {
            let op = Checked::ScatterElements(ScatterElements::new(1, ScatterReduction::None));
            eval(op, &[data(), ints(&[index, 0], &[2, 1]), ints(&[8, 9], &[2, 1])])
        };
        assert_eq!(scatter(-1), Ok(ints(&[0, 1, 8, 9, 4, 5], &[2, 3])));
        assert_eq!(scatter(3), beyond(3, 3));
    }

    /// tract reads coordinates as 32 bits, and knows none that count from the end.
    #[test]
    fn coordinates_may_count_from_the_end() {
        let gather = |row, column| {
            eval(Checked::GatherNd(GatherNd::new(0)), &[data(), ints(&[row, column], &[1, 2])])
        };
        assert_eq!(gather(-1, 1), Ok(ints(&[4], &[1])));
        assert_eq!(gather(0, -3), Ok(ints(&[0], &[1])));
        assert_eq!(gather(2, 0), beyond(2, 2));
        assert_eq!(gather(0, 1 << 32), beyond(1 << 32, 3));
        for reduction in [ScatterReduction::None, ScatterReduction::Add] {
            let scatter = |row, column| {
                let op = Checked::ScatterNd(ScatterNd::new(reduction));
                eval(op, &[data(), ints(&[row, column], &[1, 2]), ints(&[7], &[1])])
            };
            let changed = if reduction == ScatterReduction::Add { 12 } else { 7 };
            assert_eq!(scatter(-1, -1), Ok(ints(&[0, 1, 2, 3, 4, changed], &[2, 3])));
            assert_eq!(scatter(0, 3), beyond(3, 3));
            assert_eq!(scatter(-3, 0), beyond(-3, 2));
        }
    }

    /// What ONNX says of an index that is of no class.
    #[test]
    fn an_index_of_no_class_is_off_in_each() {
        let op = |axis| {
            let (off, on) = (tensor0(5i64).into_arc_tensor(), tensor0(9i64).into_arc_tensor());
            Checked::OneHot(OneHot { axis, dim: 2, off, on })
        };
        let indices = ints(&[1, -2, 2, 1 << 32], &[4]);
        let rows = ints(&[5, 9, 9, 5, 5, 5, 5, 5], &[4, 2]);
        assert_eq!(eval(op(1), std::slice::from_ref(&indices)), Ok(rows));
        let columns = ints(&[5, 9, 5, 5, 9, 5, 5, 5], &[2, 4]);
        assert_eq!(eval(op(0), &[indices]), Ok(columns));
    }

    #[test]
    fn there_are_no_more_elements_than_there_are() {
        let top = |k: i64| {
            let op = Topk { axis: 1, largest: true, fallback_k: TDim::Val(0) };
            eval(Checked::Topk(op), &[data(), tensor0(k)])
        };
        assert_eq!(top(1), Ok(ints(&[2, 5], &[2, 1])));
        for k in [4, -1] {
            assert_eq!(top(k), Err(format!("the top {k} of 3 elements")));
        }
        let tile = |times: i64| {
            let op = DynTile { multiplier_placeholders: tvec![1.to_dim(), 1.to_dim()] };
            eval(Checked::Tile(op), &[data(), tensor1(&[1, times])])
        };
        assert_eq!(tile(2), Ok(ints(&[0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5], &[2, 6])));
        assert_eq!(tile(-1), Err("to be repeated [1, -1] times".to_string()));
    }

    #[test]
    fn bounds_of_a_slice_are_onnxs() {
        let slice = |start: i64, end: i64| {
            let op = DynSlice { axis: 1, len: SymbolScope::default().sym("len").to_dim() };
            eval(Checked::Slice(op), &[data(), tensor0(start), tensor0(end)])
        };
        assert_eq!(slice(1, 100), Ok(ints(&[1, 2, 4, 5], &[2, 2])));
        assert_eq!(slice(-2, -1), Ok(ints(&[1, 4], &[2, 1])));
        assert_eq!(slice(i64::MIN, i64::MAX), Ok(data()));
        assert_eq!(slice(2, 1), Ok(Tensor::zero::<i64>(&[2, 0]).unwrap()));
    }

    #[test]
    fn a_range_of_open_sizes_goes_one_way() {
        let range = |end: i64, step: i64| {
            let values = [0, end, step].map(|value| tensor0(TDim::Val(value)));
            eval(Checked::Range(Range::new(SymbolScope::default().sym("len").to_dim())), &values)
        };
        assert_eq!(range(3, 1), Ok(tensor1(&[0i64, 1, 2])));
        assert_eq!(range(-2, -1), Ok(tensor1(&[0i64, -1])));
        assert_eq!(range(-2, 1), Ok(Tensor::zero::<i64>(&[0]).unwrap()));
        assert!(range(3, 0).unwrap_err().contains("steps of 0"));
    }

    /// Zeros were beside what is not wide enough.
    #[test]
    fn reflections_are_narrower_than_what_they_reflect() {
        let pad = |pad: usize| {
            let op = Pad { pads: vec![(0, 0), (pad, 0)], mode: PadMode::Reflect };
            eval(Checked::of(&op).unwrap(), &[data()])
        };
        assert_eq!(pad(2), Ok(ints(&[2, 1, 0, 1, 2, 5, 4, 3, 4, 5], &[2, 5])));
        assert_eq!(pad(3), Err("a reflection of 3 elements beside 3".to_string()));
    }

    /// Along the last axis tract divided by its length.
    #[test]
    fn a_sum_of_nothing_is_zero() {
        let sum = |shape: &[usize]| {
            let op = Reduce::new(tvec![1], Reducer::Sum);
            eval(Checked::of(&op).unwrap(), &[Tensor::zero::<f32>(shape).unwrap()])
        };
        assert_eq!(sum(&[2, 0]), Ok(tensor2(&[[0f32], [0.0]])));
        assert_eq!(sum(&[0, 2]), Ok(Tensor::zero::<f32>(&[0, 1]).unwrap()));
    }

    #[test]
    fn negative_pads_cut_off() {
        let mut model = TypedModel::default();
        let n = model.symbols.sym("n");
        let x = model.add_source("x", i64::datum_type().fact([n.to_dim(), 3.to_dim()])).unwrap();
        let mode = PadMode::Constant(tensor0(7i64).into_arc_tensor());
        let pads = vec![(1, (-1isize) as usize), ((-1isize) as usize, 2)];
        let y = model.wire_node("y", Pad { pads, mode }, &[x]).unwrap();
        model.select_output_outlets(&y).unwrap();
        crop_pads(&mut model).unwrap();
        let plan = TypedSimplePlan::new(model.into_optimized().unwrap()).unwrap();
        let found = plan.run(tvec![data().into_tvalue()]).unwrap().remove(0);
        assert_eq!(*found, ints(&[7, 7, 7, 7, 1, 2, 7, 7], &[2, 4]));
    }
}
