//! What is fused behind a matrix product.

use std::ops::Range;

use crate::cpu::parallel::Tile;
use crate::cpu::simd::{Kernel, Simd, gelu};

/// Floats of a cache line.
const LINE: usize = 16;

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
    /// Asks for what is added to the row.
    #[inline(always)]
    pub fn fetch<S: Simd>(&self, s: S) {
        for line in self.residual.unwrap_or_default().chunks(LINE) {
            s.prefetch(line.as_ptr());
        }
    }

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

/// What sums of integers are in numbers.
#[derive(Clone, Copy)]
pub struct Scales<'a> {
    /// Whether the sums are not f32, but integers in the bits.
    pub bits: bool,
    /// Of each row that leaves.
    pub rows: &'a [f32],
    /// What stands for zero in each of them.
    pub zeros: &'a [f32],
    /// Of each output its scale, and behind all of them, of each output its total.
    pub outputs: &'a [f32],
}

/// `y = epilogue(sums)` for columns `cols` of some rows of a tile, which are counted in the tile.
pub struct Leave<'a, 'b> {
    pub tile: &'a mut Tile<'b>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    /// Columns of the whole matrix.
    pub outputs: usize,
    /// A row of a panel's width for each of the rows.
    pub sums: &'a [f32],
    /// Outputs of a panel.
    pub width: usize,
    /// If the sums are of integers.
    pub scales: Option<Scales<'a>>,
    /// Whether `y` holds what the sums are added to.
    pub add: bool,
    pub epilogue: Epilogue<'a>,
}

impl Kernel for Leave<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Leave { tile, rows, cols, outputs, sums, width, scales, add, epilogue } = self;
        let first = tile.rows().start + rows.start;
        for (r, sums) in sums.chunks_exact(width).take(rows.len()).enumerate() {
            let of_row = epilogue.of_row(first + r, cols.clone(), outputs);
            let y = tile.part(first + r, cols.clone());
            if add {
                // What the next panel is added to.
                for line in (0..width).step_by(LINE) {
                    s.prefetch(y.as_ptr().wrapping_add(width + line));
                }
            }
            for i in (0..y.len()).step_by(S::LANES) {
                let mut v = s.load(&sums[i..]);
                if let Some(Scales { bits, rows, zeros, outputs }) = scales {
                    let sum = if bits { s.integer(v) } else { v };
                    let (scale, zero) = (s.splat(rows[r]), s.splat(-zeros[r]));
                    let steps = s.fma(zero, s.load(&outputs[width + i..]), sum);
                    v = s.mul(steps, s.mul(scale, s.load(&outputs[i..])));
                }
                if add {
                    v = s.add(s.load(&y[i..]), v);
                }
                s.store(&mut y[i..], of_row.apply(s, v, i));
            }
        }
    }
}

/// Applies an epilogue to a tile that holds the sums; `outputs` is the width of the whole matrix.
pub struct Finish<'a, 'b> {
    pub tile: &'a mut Tile<'b>,
    pub outputs: usize,
    pub epilogue: Epilogue<'a>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { tile, outputs, epilogue } = self;
        if matches!(epilogue, Epilogue::Store | Epilogue::Accumulate) {
            return;
        }
        for row in tile.rows() {
            let of_row = epilogue.of_row(row, tile.cols(), outputs);
            let y = tile.row(row);
            for i in (0..y.len()).step_by(S::LANES) {
                let v = of_row.apply(s, s.load(&y[i..]), i);
                s.store(&mut y[i..], v);
            }
        }
    }
}
