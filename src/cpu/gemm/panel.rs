//! The matrix product over packed panels, for any [`Simd`].
//!
//! The weight lies in panels two vectors wide. The register tile is `TILE_ROWS` rows by one panel; it walks down the
//! panel, one broadcast of `x` and two multiply-adds a row and input.
//!
//! Few rows: the panels are read once, front to back, at the speed of memory; the columns are divided among threads.
//! Many rows: a task takes a block of rows and packs it as the tile reads it, `DEPTH` inputs at a time, so that a piece
//! of a panel stays in the first-level cache while the block's tiles pass over it. The sums of a piece are added to `y`.
//!
//! A sum is made in the same pieces for any number of rows, so a row's result never depends on the others; and sums of
//! short sums round less than one long sum.
//!
//! The products of a backward pass are the same product: what stands on the right is packed into panels first, [`PIECE`]
//! of its rows at a time; what stands transposed on the left is read so by the packing of its block.

use std::ops::Range;

use super::epilogue::Finish;
use super::weight::Panels;
use super::{Epilogue, Gemm, Weight};
use crate::backend::Matrix;
use crate::cpu::parallel::{Pool, Tile, with_scratch};
use crate::cpu::simd::{Kernel, Simd};
use crate::error::Result;

/// Inputs of a pass, chosen so that a piece of a panel stays in the first-level cache.
const DEPTH: usize = 256;
/// Register tiles in a block of rows, chosen so that the packed block takes a fraction of the second-level cache.
const BLOCK_TILES: usize = 12;
/// Floats of `x` that may stay in the second-level cache beside the weights that pass through.
const RESIDENT: usize = 1 << 17;
/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 18;
/// Rows of the right-hand matrix that the products of a backward pass pack at a time: so few that the panels stay in a
/// cache, a multiple of [`DEPTH`] and of any panel's width.
const PIECE: usize = 4 * DEPTH;
/// How far ahead of its use the weight is asked for, in floats.
const PREFETCH: usize = 4096;

/// The product over panels with the instructions of `S`.
pub struct Panel<S> {
    simd: S,
    name: &'static str,
}

impl<S: Simd> Panel<S> {
    const WIDTH: usize = 2 * S::LANES;

    /// For the registry.
    pub fn boxed(name: &'static str) -> Option<Box<dyn Gemm>> {
        S::new().map(|simd| Box::new(Panel { simd, name }) as Box<dyn Gemm>)
    }

    /// `y = epilogue(x W)`.
    fn product(&self, pool: &Pool, y: &mut [f32], x: Left<'_>, w: Panels<'_>, rows: usize, epilogue: Epilogue<'_>) {
        let (block, columns) = self.plan(rows, w, pool.threads());
        pool.tiles(rows, block, [(y, w.outputs, columns)], |[tile]| self.block(tile, x, w, epilogue));
    }

    /// Rows and columns of a task.
    fn plan(&self, rows: usize, w: Panels<'_>, threads: usize) -> (usize, usize) {
        let all = (rows.max(1), w.outputs.max(1));
        if threads == 1 || rows * w.inputs * w.outputs < SERIAL {
            return (all.0.min(BLOCK_TILES * S::TILE_ROWS), all.1);
        }
        // A few tasks a thread even out what else the machine does. Rows are divided first, as each task packs its rows.
        let tasks = 4 * threads;
        let tiles = rows.div_ceil(S::TILE_ROWS);
        let tiles_per_block = tiles.div_ceil(tasks).max(tiles.min(BLOCK_TILES / 3)).min(BLOCK_TILES);
        let blocks = tiles.div_ceil(tiles_per_block);
        let panels = w.outputs.div_ceil(Self::WIDTH);
        let panels_per_task = panels.div_ceil(tasks.div_ceil(blocks)).max(1);
        (tiles_per_block * S::TILE_ROWS, panels_per_task * Self::WIDTH)
    }

    /// Computes one tile of `y`.
    fn block(&self, mut tile: Tile<'_>, x: Left<'_>, w: Panels<'_>, epilogue: Epilogue<'_>) {
        let (rows, cols, inputs) = (tile.rows(), tile.cols(), w.inputs);
        // A block that stays in the second-level cache takes panel after panel; of a larger one, pass after pass.
        let group = if rows.len() * inputs <= RESIDENT { Self::WIDTH } else { cols.len() };
        with_scratch(rows.len() * inputs, |scratch| {
            let x = match x {
                Left::Rows { data, stride } if rows.len() == 1 => &data[rows.start * stride..][..inputs],
                _ => pack::<S>(scratch, x, rows.clone(), inputs),
            };
            for group in cols.clone().step_by(group).map(|col| col..cols.end.min(col + group)) {
                // At least one pass, so that without inputs the sums are zero.
                for first in (0..inputs.max(1)).step_by(DEPTH) {
                    let end = inputs.min(first + DEPTH);
                    let x = &x[rows.len() * first..rows.len() * end];
                    let add = first > 0 || epilogue.accumulates();
                    for col in group.clone().step_by(Self::WIDTH) {
                        let panel = w.panel(col / Self::WIDTH);
                        let panel = &panel[first * Self::WIDTH..end * Self::WIDTH];
                        for (start, len) in split::<S>(rows.len()) {
                            let x = &x[start * (end - first)..][..len * (end - first)];
                            self.micro(&mut tile, (rows.start + start, len, col), x, panel, add);
                        }
                    }
                }
            }
        });
        self.simd.vectorize(Finish { tile: &mut tile, outputs: w.outputs, epilogue });
    }

    /// Picks the register tile for `len` rows.
    fn micro(&self, tile: &mut Tile<'_>, (row, len, col): (usize, usize, usize), x: &[f32], w: &[f32], add: bool) {
        macro_rules! pick {
            ($($m:literal)*) => {
                match len {
                    $($m if $m <= S::TILE_ROWS => self.simd.vectorize(Micro::<$m> { tile, row, col, x, w, add }),)*
                    _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

impl<S: Simd> Gemm for Panel<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, pool: &Pool, matrix: Matrix<'_>, transposed: bool) -> Result<Weight> {
        Weight::panels(pool, matrix, transposed, Self::WIDTH)
    }

    fn multiply(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, epilogue: Epilogue<'_>) {
        let x = Left::Rows { data: &x[..rows * w.inputs], stride: w.inputs };
        self.product(pool, y, x, w.as_panels(Self::WIDTH), rows, epilogue);
    }

    fn multiply_by_transpose(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, accumulate: bool) {
        let (x, w) = (&x[..rows * w.outputs], w.as_panels(Self::WIDTH));
        // At least one piece, so that without inputs the sums are zero.
        for first in (0..w.outputs.max(1)).step_by(PIECE) {
            let range = first..w.outputs.min(first + PIECE);
            with_scratch(Panels::len(range.len(), w.inputs, Self::WIDTH), |scratch| {
                let piece = Panels::pack_transpose(pool, scratch, w, range);
                let x = Left::Rows { data: x.get(first..).unwrap_or_default(), stride: w.outputs };
                self.product(pool, y, x, piece, rows, Epilogue::sums(accumulate || first > 0));
            });
        }
    }

    fn add_outer(&self, pool: &Pool, y: &mut [f32], a: &[f32], b: &[f32], rows: usize, (m, n): (usize, usize)) {
        let (a, b) = (&a[..rows * m], &b[..rows * n]);
        for first in (0..rows).step_by(PIECE) {
            let range = first..rows.min(first + PIECE);
            with_scratch(Panels::len(range.len(), n, Self::WIDTH), |scratch| {
                let b = Matrix { data: &b[first * n..range.end * n], rows: range.len(), cols: n };
                let piece = Panels::pack(pool, scratch, b, false, Self::WIDTH);
                let a = Left::Columns { data: &a[first * m..], stride: m };
                self.product(pool, y, a, piece, m, Epilogue::Accumulate);
            });
        }
    }
}

/// What stands on the left of a product, from its first row and input on.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// Rows are `stride` apart, inputs side by side.
    Rows { data: &'a [f32], stride: usize },
    /// Rows are side by side, inputs `stride` apart.
    Columns { data: &'a [f32], stride: usize },
}

/// Divides rows into register tiles of nearly the same height, as `(start, len)`.
fn split<S: Simd>(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(S::TILE_ROWS);
    (0..tiles).map(move |i| (rows * i / tiles, rows * (i + 1) / tiles - rows * i / tiles))
}

/// Arranges rows of `x` as the register tiles read them: pass by pass, tile by tile, input by input.
fn pack<'a, S: Simd>(packed: &'a mut [f32], x: Left<'_>, rows: Range<usize>, inputs: usize) -> &'a [f32] {
    for first in (0..inputs).step_by(DEPTH) {
        let depth = DEPTH.min(inputs - first);
        for (start, len) in split::<S>(rows.len()) {
            let packed = &mut packed[rows.len() * first + start * depth..][..len * depth];
            let start = rows.start + start;
            match x {
                Left::Rows { data, stride } => interleave(packed, &data[start * stride + first..], stride, len),
                Left::Columns { data, stride } => {
                    for (k, packed) in (first..).zip(packed.chunks_exact_mut(len)) {
                        packed.copy_from_slice(&data[k * stride + start..][..len]);
                    }
                }
            }
        }
    }
    packed
}

/// `packed[k · rows + r] = x[r, k]` for rows that are `stride` apart.
fn interleave(packed: &mut [f32], x: &[f32], stride: usize, rows: usize) {
    // As many columns at a time as a cache line holds.
    const STEP: usize = 16;
    for (step, packed) in packed.chunks_mut(STEP * rows).enumerate() {
        for r in 0..rows {
            let x = &x[r * stride + step * STEP..][..packed.len() / rows];
            for k in 0..x.len() {
                packed[k * rows + r] = x[k];
            }
        }
    }
}

/// The register tile: `y[row.., col..] (+)= x w` for `M` rows and one panel; `x` packed, `w` a piece of the panel.
struct Micro<'a, 'b, const M: usize> {
    tile: &'a mut Tile<'b>,
    row: usize,
    col: usize,
    x: &'a [f32],
    w: &'a [f32],
    /// Whether the sums are added to `y`.
    add: bool,
}

impl<const M: usize> Kernel for Micro<'_, '_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Micro { tile, row, col, x, w, add } = self;
        let cols = col..tile.cols().end.min(col + 2 * S::LANES);
        let middle = S::LANES.min(cols.len());
        let mut sums = [[s.splat(0.0); 2]; M];
        let (x, w) = (x.as_chunks::<M>().0, S::arrays(w).as_chunks::<2>().0);
        let x = &x[..w.len()];
        for k in 0..w.len() {
            let (x, w) = (&x[k], &w[k]);
            s.prefetch(w.as_ptr().cast::<f32>().wrapping_add(PREFETCH));
            s.prefetch(w.as_ptr().cast::<f32>().wrapping_add(PREFETCH + S::LANES));
            let w = [s.load_array(&w[0]), s.load_array(&w[1])];
            for r in 0..M {
                let x = s.splat(x[r]);
                sums[r] = [s.fma(x, w[0], sums[r][0]), s.fma(x, w[1], sums[r][1])];
            }
        }
        for r in 0..M {
            let (left, right) = tile.part(row + r, cols.clone()).split_at_mut(middle);
            if add {
                sums[r] = [s.add(sums[r][0], s.load(left)), s.add(sums[r][1], s.load(right))];
            }
            s.store(left, sums[r][0]);
            s.store(right, sums[r][1]);
        }
    }
}
