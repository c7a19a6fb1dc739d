//! The matrix product over packed panels, for any [`Microkernel`].
//!
//! The weight lies in panels. Few rows: the panels are read once, front to back, at the speed of memory; the columns are
//! divided among threads. Many rows: a task takes a block of rows, packs it, and passes over the panels.
//!
//! A sum is made in the same order for any number of rows, so a row's result never depends on the others.
//!
//! The products of a backward pass are the same product. What stands on the right is packed into panels first: the
//! activations, [`PIECE`] rows at a time; f32 weights likewise, narrow ones once, beside those of the forward pass, as they
//! take less memory. What stands transposed on the left is read so by the packing of its block.

use super::format::Format;
use super::left::Left;
use super::micro::Microkernel;
use super::weight::{Layout, Panels};
use super::{Epilogue, Gemm, Mlp, Weight};
use crate::backend::Matrix;
use crate::cpu::parallel::{Pool, with_scratch};
use crate::error::Result;

/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 18;
/// Columns for which packing a row costs next to nothing.
const MANY_COLUMNS: usize = 1024;
/// Rows of the right-hand matrix that the products of a backward pass pack at a time: so few that the panels stay in a
/// cache, a multiple of any pass and of any panel's width.
const PIECE: usize = 1024;

/// Tasks for each thread of products of several blocks, which even out what else the machine does.
const TASKS: usize = 4;
/// Tasks for each thread of a product of one block, which each thread packs but once: so many that the last of them, for
/// which threads wait, is a small part.
const TASKS_OF_ONE_BLOCK: usize = 16;

/// The product with tiles of `M`.
pub struct Product<M> {
    micro: M,
    name: &'static str,
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
        let is_plain = |rows| rows == 1 && matches!(x, Left::Rows { .. }) && M::takes_plain_row(w.inputs);
        if rows <= block && columns < w.outputs && !is_plain(rows) {
            // One block for all tasks, and a copy for each thread: to fetch another's takes longer.
            return pool.share_tiles(rows, block, [(y, w.outputs, columns)], |tiles| {
                with_scratch(M::packed_len(rows, w.words()), |packed| {
                    self.micro.pack(packed, x, 0, rows, w);
                    tiles.for_each(|[tile]| self.micro.block(tile, packed, w, epilogue));
                });
            });
        }
        pool.tiles(rows, block, [(y, w.outputs, columns)], |[tile]| {
            let rows = tile.rows();
            match x {
                Left::Rows { data, stride } if is_plain(rows.len()) => {
                    self.micro.block(tile, &data[rows.start * stride..][..w.inputs], w, epilogue);
                }
                _ => with_scratch(M::packed_len(rows.len(), w.words()), |packed| {
                    self.micro.pack(packed, x, rows.start, rows.len(), w);
                    self.micro.block(tile, packed, w, epilogue);
                }),
            }
        });
    }

    /// Rows and columns of a task.
    fn plan(&self, rows: usize, w: Panels<'_>, threads: usize) -> (usize, usize) {
        let all = (rows.max(1), w.outputs.max(1));
        let block_tiles = (M::block_rows(w.words()) / M::ROWS).max(1);
        if threads == 1 || rows * w.inputs * w.outputs < SERIAL {
            return (all.0.min(block_tiles * M::ROWS), all.1);
        }
        // Rows are divided first, as each task packs its rows, but where there are many columns to a task, that is little.
        let bands = (TASKS * threads).div_ceil((w.outputs / MANY_COLUMNS).max(1));
        let tiles = rows.div_ceil(M::ROWS);
        let tiles_per_block = tiles.div_ceil(bands).max(tiles.min(block_tiles.div_ceil(3))).min(block_tiles);
        // As many blocks for each thread, of nearly the same height, or threads wait for the last one.
        let (blocks, tasks) = match tiles.div_ceil(tiles_per_block) {
            1 => (1, TASKS_OF_ONE_BLOCK),
            blocks => (blocks.next_multiple_of(threads), TASKS),
        };
        let panels = w.outputs.div_ceil(M::WIDTH);
        let panels_per_task = panels.div_ceil((tasks * threads).div_ceil(blocks)).max(1);
        (rows.div_ceil(blocks).next_multiple_of(M::GRAIN).max(1), panels_per_task * M::WIDTH)
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

    fn multiply_twice(&self, pool: &Pool, y: &mut [f32], x: &[f32], mlp: Mlp<'_, &Weight>, rows: usize) -> bool {
        // With fewer, threads that divide columns read less.
        if M::ROWS_TWICE == 0 || rows < 2 * M::GRAIN * pool.threads() {
            return false;
        }
        let [first, second] = [mlp.first, mlp.second].map(|w| w.as_panels(Self::LAYOUT));
        let x = Left::Rows { data: &x[..rows * first.inputs], stride: first.inputs };
        let tiles = rows.div_ceil(M::GRAIN);
        let bands = tiles.div_ceil(M::ROWS_TWICE / M::GRAIN).next_multiple_of(pool.threads());
        let edge = |band: usize| (tiles * band / bands * M::GRAIN).min(rows);
        let of_band = (0..bands).map(|band| edge(band)..edge(band + 1));
        pool.bands(y, (second.outputs, second.outputs), of_band, |_, tile| {
            let rows = tile.rows();
            with_scratch(M::packed_len(rows.len(), first.words()), |packed| {
                self.micro.pack(packed, x, rows.start, rows.len(), first);
                self.micro.block_twice(tile, packed, Mlp { first, second, bias: mlp.bias, epilogue: mlp.epilogue });
            });
        });
        true
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
                let piece = Panels::pack(pool, self.micro.token(), scratch, (b, false), &[], Self::LAYOUT);
                let a = Left::Columns { data: &a[first * m..], stride: m };
                self.product(pool, y, a, piece, m, Epilogue::Accumulate);
            });
        }
    }
}
