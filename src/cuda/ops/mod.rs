//! The groups of operations on the device: each op turns its buffers and sizes into the arguments of a kernel.

mod attention;
mod embed;
mod latent;
mod linear;
mod loss;
mod norm;
mod optim;

use super::driver::Arg;
use super::{Buffer, Cuda};
use crate::backend::Spans;
use crate::rng::Mask;

/// The first `len` elements of a buffer.
fn first(buffer: &Buffer, len: usize) -> Arg {
    Arg::Address(buffer.first(len))
}

/// All of a buffer, whose use depends on values that only the device has.
fn whole(buffer: &Buffer) -> Arg {
    Arg::Address(buffer.first(buffer.len()))
}

/// The bounds of spans.
fn bounds(spans: &Spans<Cuda>) -> Arg {
    first(&spans.bounds, 2 * spans.rows)
}

/// The positions of `(2, count)` ids and positions.
fn positions(tokens: &Buffer, count: usize) -> Arg {
    Arg::Address(tokens.range(count, count))
}

/// A dropout mask: key, threshold, factor.
fn mask(mask: Mask) -> [Arg; 4] {
    let (key, threshold, factor) = mask.parts();
    [Arg::Word(key[0]), Arg::Word(key[1]), Arg::Word(threshold), Arg::Float(factor)]
}
