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
    /// Weights of 4 bits with a scale for each output and a factor for each 32 of its inputs, but for the table of tokens,
    /// which is [`Int8`](Dtype::Int8), like all else.
    Int4,
}

impl Dtype {
    /// Whether weights of this type can be trained.
    pub fn trains(self) -> bool {
        !matches!(self, Dtype::Int8 | Dtype::Int4)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::Int8 => "int8",
            Dtype::Int4 => "int4",
        })
    }
}
