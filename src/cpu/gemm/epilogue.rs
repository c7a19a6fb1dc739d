//! What is fused behind a matrix product.

use std::ops::Range;

use crate::cpu::parallel::Tile;
use crate::cpu::simd::{Kernel, Simd, gelu};

/// What becomes of the sums.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// `y = x W`.
    Store,
    /// `y += x W`: the sums start from `y`.
    Accumulate,
    /// `y = x W + b`.
    Bias(&'a [f32]),
    /// `y = gelu_new(x W + b)`.
    BiasGelu(&'a [f32]),
    /// `y = residual + (x W + b)`.
    BiasResidual(&'a [f32], &'a [f32]),
}

impl Epilogue<'_> {
    /// Nothing but the sums, which start from `y` if `accumulate`.
    pub fn sums(accumulate: bool) -> Self {
        if accumulate { Epilogue::Accumulate } else { Epilogue::Store }
    }

    /// Whether the sums start from what `y` holds.
    pub fn accumulates(&self) -> bool {
        matches!(self, Epilogue::Accumulate)
    }
}

/// Applies an epilogue to columns `cols` of a tile that holds the sums; `outputs` is the width of the whole matrix.
pub struct Finish<'a, 'b> {
    pub tile: &'a mut Tile<'b>,
    pub cols: Range<usize>,
    pub outputs: usize,
    pub epilogue: Epilogue<'a>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { tile, cols, outputs, epilogue } = self;
        for row in tile.rows() {
            let cols = cols.clone();
            let y = tile.part(row, cols.clone());
            match epilogue {
                Epilogue::Store | Epilogue::Accumulate => return,
                Epilogue::Bias(bias) => {
                    let bias = &bias[cols];
                    for i in (0..y.len()).step_by(S::LANES) {
                        let v = s.add(s.load(&y[i..]), s.load(&bias[i..]));
                        s.store(&mut y[i..], v);
                    }
                }
                Epilogue::BiasGelu(bias) => {
                    let bias = &bias[cols];
                    for i in (0..y.len()).step_by(S::LANES) {
                        let v = gelu(s, s.add(s.load(&y[i..]), s.load(&bias[i..])));
                        s.store(&mut y[i..], v);
                    }
                }
                Epilogue::BiasResidual(bias, residual) => {
                    let residual = &residual[row * outputs..][cols.clone()];
                    let bias = &bias[cols];
                    for i in (0..y.len()).step_by(S::LANES) {
                        let v = s.add(s.load(&residual[i..]), s.add(s.load(&y[i..]), s.load(&bias[i..])));
                        s.store(&mut y[i..], v);
                    }
                }
            }
        }
    }
}
