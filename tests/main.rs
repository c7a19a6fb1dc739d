//! The integration tests, one binary.

/// Inputs, comparisons and plain f64 versions of the ops.
mod util;

/// Every CPU op, instruction set and matrix product against plain loops, and bit for bit against itself.
mod cpu_ops;
