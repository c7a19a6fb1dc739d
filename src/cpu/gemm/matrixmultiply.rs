//! The matrix product of the `matrixmultiply` crate: the baseline that the others are measured against.
//!
//! The crate finds out by itself what the processor has; a cap on the instruction set does not reach it.
#![allow(unsafe_code)]

use super::epilogue::Finish;
use super::{Epilogue, Gemm, Weight};
use crate::backend::Matrix;
use crate::cpu::arch::Portable;
use crate::cpu::parallel::{Pool, Tile};
use crate::cpu::simd::Simd;
use crate::error::Result;

/// Rows and columns of a task.
const BLOCK: usize = 256;

/// `matrixmultiply::sgemm` on the weight as it is stored.
pub struct MatrixMultiply {
    name: &'static str,
}

impl MatrixMultiply {
    /// For the registry.
    pub fn boxed(name: &'static str) -> Option<Box<dyn Gemm>> {
        Some(Box::new(MatrixMultiply { name }))
    }
}

impl Gemm for MatrixMultiply {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, _pool: &Pool, matrix: Matrix<'_>, transposed: bool) -> Result<Weight> {
        Weight::strided(matrix, transposed)
    }

    fn multiply(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, epilogue: Epilogue<'_>) {
        let w = View::of(w);
        let x = View::new(x, (rows, w.rows));
        pool.tiles(rows, BLOCK, [(y, w.cols, BLOCK)], |[mut tile]| {
            sgemm(&mut tile, x, w, epilogue.accumulates());
            Portable.vectorize(Finish { tile: &mut tile, outputs: w.cols, epilogue });
        });
    }

    fn multiply_by_transpose(&self, pool: &Pool, y: &mut [f32], x: &[f32], w: &Weight, rows: usize, accumulate: bool) {
        let w = View::of(w).transposed();
        let x = View::new(x, (rows, w.rows));
        pool.tiles(rows, BLOCK, [(y, w.cols, BLOCK)], |[mut tile]| sgemm(&mut tile, x, w, accumulate));
    }

    fn add_outer(&self, pool: &Pool, y: &mut [f32], a: &[f32], b: &[f32], rows: usize, (m, n): (usize, usize)) {
        let (a, b) = (View::new(a, (rows, m)).transposed(), View::new(b, (rows, n)));
        pool.tiles(m, BLOCK, [(y, n, BLOCK)], |[mut tile]| sgemm(&mut tile, a, b, true));
    }
}

/// A matrix in memory, its rows and columns any distance apart.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    /// From one row to the next, and from one column to the next.
    strides: (usize, usize),
}

impl<'a> View<'a> {
    /// A row-major matrix.
    fn new(data: &'a [f32], (rows, cols): (usize, usize)) -> Self {
        View { data: &data[..rows * cols], rows, cols, strides: (cols, 1) }
    }

    /// `W (in, out)`.
    fn of(w: &'a Weight) -> Self {
        let (data, inputs, outputs) = w.as_strided();
        View { data, rows: w.inputs, cols: w.outputs, strides: (inputs, outputs) }
    }

    fn transposed(self) -> Self {
        View { rows: self.cols, cols: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// The address of the first element of a row or column, which is not beyond the matrix.
    fn at(self, row: usize, col: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(row * self.strides.0 + col * self.strides.1)
    }
}

/// `tile = a b`, or `tile += a b` if `accumulate`.
fn sgemm(tile: &mut Tile<'_>, a: View<'_>, b: View<'_>, accumulate: bool) {
    let (rows, cols) = (tile.rows(), tile.cols());
    assert!(a.cols == b.rows && rows.end <= a.rows && cols.end <= b.cols);
    assert!(a.data.len() == a.rows * a.cols && b.data.len() == b.rows * b.cols);
    let (y, stride) = tile.as_mut_ptr();
    // SAFETY: `y` may reach all of a tile that is ours alone, of `rows` by `cols` elements `stride` apart. A view's slice is the
    // whole matrix and its strides are one row-major order or the other, so that all of its elements lie inside the slice;
    // `rows` of `a` and `cols` of `b` are in range.
    unsafe {
        matrixmultiply::sgemm(
            rows.len(),
            a.cols,
            cols.len(),
            1.0,
            a.at(rows.start, 0),
            a.strides.0 as isize,
            a.strides.1 as isize,
            b.at(0, cols.start),
            b.strides.0 as isize,
            b.strides.1 as isize,
            if accumulate { 1.0 } else { 0.0 },
            y,
            stride as isize,
            1,
        );
    }
}
