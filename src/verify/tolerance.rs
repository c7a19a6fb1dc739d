//! How far a result may lie from the published code's.

use crate::dtype::Dtype;

/// The largest error of the sampler's probabilities that passes, relative to their root mean square: the recorded ones are
/// f32.
pub(super) const PROBABILITY: f64 = 1e-6;

/// As [`tolerance`], of a gradient: sums over all tokens of products of two results, in the published code's own case too.
pub(super) fn gradient_tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 3e-6,
        Dtype::F32 => 3e-5,
        // the worst of many thousand elements, in a model whose sums are short
        Dtype::Bf16 | Dtype::Int8 | Dtype::Int4 => 3e-1,
    }
}

/// The largest error of a tensor's elements that passes, relative to the tensor's root mean square.
///
/// The recorded values are f64 results rounded to f32, so f64 arithmetic comes within their rounding; f32 arithmetic
/// loses digits in every sum of the model's depth.
pub fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 1e-6,
        Dtype::F32 => 3e-5,
        Dtype::Bf16 => 3e-2,
        Dtype::Int8 => 2e-1,
        Dtype::Int4 => 2.0,
    }
}
