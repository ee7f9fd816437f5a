//! Sums of half floats. Tract adds them up in half floats, of which a large sum swallows what is
//! small beside it, and none is above 65504: 224 x 224 pixels have no mean there. They are added up
//! as floats, and what comes of it is rounded once.

use tract_core::internal::*;
use tract_core::ops::cast::wire_cast;
use tract_onnx::tract_hir::ops::expandable::Expansion;

/// Operators that sum, and give what they are given.
pub const SUMS: [&str; 17] = [
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LpNormalization",
    "MeanVarianceNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

/// Puts an operator into the graph, whose half floats are floats to it.
pub fn in_floats(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let mut floats: TVec<OutletId> = inputs.into();
    for (index, input) in floats.iter_mut().enumerate() {
        let fact = model.outlet_fact(*input)?;
        if fact.datum_type != f16::datum_type() {
            continue;
        }
        let name = format!("{prefix}.float.{index}");
        *input = match fact.konst.clone() {
            Some(constant) => model.add_const(name, constant.cast_to::<f32>()?.into_owned())?,
            None => wire_cast(name, model, &[*input], f32::datum_type())?[0],
        };
    }
    let wires = Expansion::wire(operator, prefix, model, &floats)?;
    match floats[..] == *inputs {
        true => Ok(wires),
        false => wire_cast(format!("{prefix}.half"), model, &wires, f16::datum_type()),
    }
}
