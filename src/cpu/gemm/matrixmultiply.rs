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
const BLOCK: (usize, usize) = (256, 256);

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
        let x = &x[..rows * w.inputs];
        let beta = if epilogue.accumulates() { 1.0 } else { 0.0 };
        pool.tiles(y, (rows, w.outputs), BLOCK, |mut tile| {
            sgemm(&mut tile, x, w, beta);
            Portable.vectorize(Finish { tile: &mut tile, outputs: w.outputs, epilogue });
        });
    }
}

/// `tile = x W + beta · tile`.
fn sgemm(tile: &mut Tile<'_>, x: &[f32], w: &Weight, beta: f32) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let (data, inputs, outputs) = w.as_strided();
    let x = &x[rows.start * w.inputs..rows.end * w.inputs];
    assert!(cols.end <= w.outputs && data.len() == w.inputs * w.outputs);
    let (y, stride) = tile.as_mut_ptr();
    // SAFETY: `y` may reach all of a tile that is ours alone, `rows` by `cols` with rows `stride` apart; `x` was cut to `rows`
    // rows of `w.inputs`; `data` is the whole matrix with the strides its layout says, and `cols` lies inside it.
    unsafe {
        matrixmultiply::sgemm(
            rows.len(),
            w.inputs,
            cols.len(),
            1.0,
            x.as_ptr(),
            w.inputs as isize,
            1,
            data.as_ptr().wrapping_add(cols.start * outputs),
            inputs as isize,
            outputs as isize,
            beta,
            y,
            stride as isize,
            1,
        );
    }
}
