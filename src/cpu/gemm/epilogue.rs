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

    /// What it does to columns `cols` of row `row`; `outputs` is the width of the whole matrix.
    #[inline(always)]
    pub fn of_row(&self, row: usize, cols: Range<usize>, outputs: usize) -> OfRow<'_> {
        let plain = OfRow { bias: None, gelu: false, residual: None };
        match *self {
            Epilogue::Store | Epilogue::Accumulate => plain,
            Epilogue::Bias(bias) => OfRow { bias: Some(&bias[cols]), ..plain },
            Epilogue::BiasGelu(bias) => OfRow { bias: Some(&bias[cols]), gelu: true, ..plain },
            Epilogue::BiasResidual(bias, residual) => {
                let residual = &residual[row * outputs..][cols.clone()];
                OfRow { bias: Some(&bias[cols]), residual: Some(residual), ..plain }
            }
        }
    }

    /// Whether the sums start from what `y` holds.
    pub fn accumulates(&self) -> bool {
        matches!(self, Epilogue::Accumulate)
    }
}

/// What is done to the sums of a part of a row.
pub struct OfRow<'a> {
    bias: Option<&'a [f32]>,
    gelu: bool,
    residual: Option<&'a [f32]>,
}

impl OfRow<'_> {
    /// Column `i` of the part and those after it, as many as a vector holds.
    #[inline(always)]
    pub fn apply<S: Simd>(&self, s: S, mut v: S::F32, i: usize) -> S::F32 {
        if let Some(bias) = self.bias {
            v = s.add(v, s.load(&bias[i..]));
        }
        if self.gelu {
            v = gelu(s, v);
        }
        match self.residual {
            Some(residual) => s.add(s.load(&residual[i..]), v),
            None => v,
        }
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
        if matches!(epilogue, Epilogue::Store | Epilogue::Accumulate) {
            return;
        }
        for row in tile.rows() {
            let of_row = epilogue.of_row(row, cols.clone(), outputs);
            let y = tile.part(row, cols.clone());
            for i in (0..y.len()).step_by(S::LANES) {
                let v = of_row.apply(s, s.load(&y[i..]), i);
                s.store(&mut y[i..], v);
            }
        }
    }
}
