//! The matrix product over packed panels, for any [`Microkernel`].
//!
//! The weight lies in panels. A register tile is a few rows by one panel; it walks down the panel.
//!
//! Few rows: the panels are read once, front to back, at the speed of memory; the columns are divided among threads.
//! Many rows: a task takes a block of rows and packs it as the tile reads it, `DEPTH` words at a time, so that a piece
//! of a panel stays in the second-level cache while the block's tiles pass over it. The sums of a piece are added to `y`.
//!
//! A sum is made in the same pieces for any number of rows, so a row's result never depends on the others; and sums of
//! short sums round less than one long sum.
//!
//! The products of a backward pass are the same product. What stands on the right is packed into panels first: the
//! activations, [`PIECE`] rows at a time; f32 weights likewise, narrow ones once, beside those of the forward pass, as they
//! take less memory. What stands transposed on the left is read so by the packing of its block.

use std::marker::PhantomData;
use std::ops::Range;

use super::epilogue::Finish;
use super::format::Format;
use super::left::Left;
use super::micro::Microkernel;
use super::weight::{Layout, Panels};
use super::{Epilogue, Gemm, Weight};
use crate::backend::Matrix;
use crate::cpu::parallel::{Pool, Tile, with_scratch};
use crate::error::Result;

/// Rows of a block, about, so that the packed block takes a fraction of the second-level cache.
const BLOCK_ROWS: usize = 144;
/// Floats of `x` that may stay in the second-level cache beside the weights that pass through.
const RESIDENT: usize = 1 << 17;
/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 18;
/// Rows of the right-hand matrix that the products of a backward pass pack at a time: so few that the panels stay in a
/// cache, a multiple of any pass and of any panel's width.
const PIECE: usize = 1024;

/// The product with tiles of `M`.
pub struct Product<M> {
    micro: M,
    name: &'static str,
}

/// Divides rows into tiles of nearly the same height, as `(start, len)`.
fn split<M: Microkernel>(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(M::ROWS);
    (0..tiles).map(move |i| (rows * i / tiles, rows * (i + 1) / tiles - rows * i / tiles))
}

impl<M: Microkernel> Product<M> {
    const LAYOUT: Layout = Layout { width: M::WIDTH, align: M::ALIGN, format: M::FORMAT };

    /// For the registry.
    pub fn boxed(name: &'static str) -> Option<Box<dyn Gemm>> {
        M::new().map(|micro| Box::new(Product { micro, name }) as Box<dyn Gemm>)
    }

    /// `y = epilogue(x W)`.
    fn product(&self, pool: &Pool, y: &mut [f32], x: Left<'_>, w: Panels<'_>, rows: usize, epilogue: Epilogue<'_>) {
        let (block, columns) = self.plan(rows, w, pool.threads());
        let packed = Packed::<M>::new(rows, w.words());
        if rows <= block && columns < w.outputs && !packed.is_plain(x, w.inputs) {
            // One block for all tasks.
            return with_scratch(packed.len(), |scratch| {
                packed.fill(self.micro, scratch, x, 0, w.inputs);
                pool.tiles(rows, block, [(y, w.outputs, columns)], |[tile]| {
                    self.block(tile, scratch, w, epilogue);
                });
            });
        }
        pool.tiles(rows, block, [(y, w.outputs, columns)], |[tile]| {
            let rows = tile.rows();
            let packed = Packed::<M>::new(rows.len(), w.words());
            match x {
                Left::Rows { data, stride } if packed.is_plain(x, w.inputs) => {
                    self.block(tile, &data[rows.start * stride..][..w.inputs], w, epilogue);
                }
                _ => with_scratch(packed.len(), |scratch| {
                    packed.fill(self.micro, scratch, x, rows.start, w.inputs);
                    self.block(tile, scratch, w, epilogue);
                }),
            }
        });
    }

    /// Rows and columns of a task.
    fn plan(&self, rows: usize, w: Panels<'_>, threads: usize) -> (usize, usize) {
        let all = (rows.max(1), w.outputs.max(1));
        let block_tiles = (BLOCK_ROWS / M::ROWS).max(1);
        if threads == 1 || rows * w.inputs * w.outputs < SERIAL {
            return (all.0.min(block_tiles * M::ROWS), all.1);
        }
        // A few tasks a thread even out what else the machine does. Rows are divided first, as each task packs its rows.
        let tasks = 4 * threads;
        let tiles = rows.div_ceil(M::ROWS);
        let tiles_per_block = tiles.div_ceil(tasks).max(tiles.min(block_tiles.div_ceil(3))).min(block_tiles);
        // As many blocks for each thread, of nearly the same height, or threads wait for the last one.
        let blocks = match tiles.div_ceil(tiles_per_block) {
            1 => 1,
            blocks => blocks.next_multiple_of(threads),
        };
        let panels = w.outputs.div_ceil(M::WIDTH);
        let panels_per_task = panels.div_ceil(tasks.div_ceil(blocks)).max(1);
        (rows.div_ceil(blocks).max(1), panels_per_task * M::WIDTH)
    }

    /// Computes one tile of `y`, of whose rows `x` is the packed block.
    fn block(&self, mut tile: Tile<'_>, x: &[f32], w: Panels<'_>, epilogue: Epilogue<'_>) {
        let (rows, cols, words) = (tile.rows(), tile.cols(), w.words());
        let packed = Packed::<M>::new(rows.len(), words);
        // A block that stays in the second-level cache takes panel after panel; of a larger one, pass after pass.
        let group = if packed.len() <= RESIDENT { M::WIDTH } else { cols.len() };
        self.micro.enter(|| {
            for group in cols.clone().step_by(group).map(|col| col..cols.end.min(col + group)) {
                for pass in passes::<M>(words) {
                    let add = pass.start > 0 || epilogue.accumulates();
                    for col in group.clone().step_by(M::WIDTH) {
                        let piece = w.piece(col / M::WIDTH, &pass);
                        for (start, len) in split::<M>(rows.len()) {
                            let x = &x[packed.place(&pass, start, len)];
                            self.micro.tile(&mut tile, (rows.start + start, len, col), x, piece, add);
                        }
                    }
                }
                // While the sums are in a cache.
                let finish = Finish { tile: &mut tile, cols: group, outputs: w.outputs, epilogue };
                self.micro.token().run(finish);
            }
        });
    }
}

/// Passes over the words; one at least, so that without inputs the sums are zero.
fn passes<M: Microkernel>(words: usize) -> impl Iterator<Item = Range<usize>> {
    (0..words.max(1)).step_by(M::DEPTH).map(move |first| first..words.min(first.saturating_add(M::DEPTH)))
}

/// A packed block: pass by pass, tile by tile.
struct Packed<M> {
    rows: usize,
    words: usize,
    micro: PhantomData<M>,
}

impl<M: Microkernel> Packed<M> {
    fn new(rows: usize, words: usize) -> Self {
        Packed { rows, words, micro: PhantomData }
    }

    /// Whether the block is a single row that is packed as it is.
    fn is_plain(&self, x: Left<'_>, inputs: usize) -> bool {
        self.rows == 1 && matches!(x, Left::Rows { .. }) && M::takes_plain_row(inputs)
    }

    /// Packs rows from `first` on.
    fn fill(&self, micro: M, packed: &mut [f32], x: Left<'_>, first: usize, inputs: usize) {
        let group = M::FORMAT.group();
        for pass in passes::<M>(self.words) {
            for (start, len) in split::<M>(self.rows) {
                let inputs = (pass.start * group).min(inputs)..(pass.end * group).min(inputs);
                let rows = first + start..first + start + len;
                micro.pack(&mut packed[self.place(&pass, start, len)], x, rows, inputs);
            }
        }
    }

    /// Floats of a pass.
    fn pass(&self, words: usize) -> usize {
        split::<M>(self.rows).map(|(_, len)| M::packed_len(len, words)).sum()
    }

    fn len(&self) -> usize {
        passes::<M>(self.words).map(|pass| self.pass(pass.len())).sum()
    }

    /// Where the tile of `len` rows from `start` on lies.
    fn place(&self, pass: &Range<usize>, start: usize, len: usize) -> Range<usize> {
        let before = if pass.start > 0 { pass.start / M::DEPTH * self.pass(M::DEPTH) } else { 0 };
        let tiles = split::<M>(self.rows).take_while(|tile| tile.0 < start);
        let first = before + tiles.map(|(_, len)| M::packed_len(len, pass.len())).sum::<usize>();
        first..first + M::packed_len(len, pass.len())
    }
}

impl<M: Microkernel> Gemm for Product<M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, pool: &Pool, matrix: Matrix<'_>, transposed: bool) -> Result<Weight> {
        Weight::panels(pool, self.micro.token(), matrix, transposed, Self::LAYOUT)
    }

    fn multiply(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, epilogue: Epilogue<'_>) {
        let x = Left::Rows { data: &x[..rows * w.inputs], stride: w.inputs };
        self.product(pool, y, x, w.as_panels(Self::LAYOUT), rows, epilogue);
    }

    fn multiply_by_transpose(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, accumulate: bool) {
        let x = &x[..rows * w.outputs];
        if M::FORMAT != Format::F32 {
            let x = Left::Rows { data: x, stride: w.outputs };
            let transpose = w.transpose(pool, self.micro.token());
            return self.product(pool, y, x, transpose, rows, Epilogue::sums(accumulate));
        }
        let w = w.as_panels(Self::LAYOUT);
        // At least one piece, so that without inputs the sums are zero.
        for first in (0..w.outputs.max(1)).step_by(PIECE) {
            let range = first..w.outputs.min(first + PIECE);
            with_scratch(Self::LAYOUT.len(range.len(), w.inputs), |scratch| {
                let piece = Panels::pack_transpose(pool, self.micro.token(), scratch, w, range);
                let x = Left::Rows { data: x.get(first..).unwrap_or_default(), stride: w.outputs };
                self.product(pool, y, x, piece, rows, Epilogue::sums(accumulate || first > 0));
            });
        }
    }

    fn add_outer(&self, pool: &Pool, y: &mut [f32], a: &[f32], b: &[f32], rows: usize, (m, n): (usize, usize)) {
        let (a, b) = (&a[..rows * m], &b[..rows * n]);
        for first in (0..rows).step_by(PIECE) {
            let range = first..rows.min(first + PIECE);
            with_scratch(Self::LAYOUT.len(range.len(), n), |scratch| {
                let b = Matrix { data: &b[first * n..range.end * n], rows: range.len(), cols: n };
                let piece = Panels::pack(pool, self.micro.token(), scratch, b, false, Self::LAYOUT);
                let a = Left::Columns { data: &a[first * m..], stride: m };
                self.product(pool, y, a, piece, m, Epilogue::Accumulate);
            });
        }
    }
}
