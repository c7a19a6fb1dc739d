//! The precisions that a device computes in.

use std::fmt;

/// The type of activations and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// Double precision: the reference device.
    F64,
    /// Single precision.
    F32,
    /// Weights of 16 bits with the exponent of f32; activations of a matrix product are rounded to it where its
    /// instructions want that. All else is f32.
    Bf16,
    /// Weights of 8 bits with a scale for each output, activations of a matrix product with a scale for each row. All else
    /// is f32.
    Int8,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::Int8 => "int8",
        })
    }
}
