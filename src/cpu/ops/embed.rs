//! Embeddings.

use super::rows_per_task;
use crate::backend::EmbedOps;
use crate::cpu::gemm::Weight;
use crate::cpu::{Buffer, Cpu};

impl EmbedOps for Cpu {
    fn embed_fwd(
        &self,
        y: &mut Buffer<f32>,
        ids: &Buffer<u32>,
        positions: &Buffer<u32>,
        wte: &Weight,
        wpe: &Weight,
        tokens: usize,
    ) {
        let width = wte.inputs();
        assert_eq!(width, wpe.inputs(), "token and position embeddings differ in width");
        let (ids, positions) = (&ids[..tokens], &positions[..tokens]);
        self.pool.rows(tokens, rows_per_task(width), [(y, width)], |first, [y]| {
            for (n, y) in (first..).zip(y.chunks_exact_mut(width)) {
                let sums = wte.row(ids[n] as usize).zip(wpe.row(positions[n] as usize)).map(|(a, b)| a + b);
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = sum;
                }
            }
        });
    }

    fn gather_rows_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, index: &Buffer<u32>, rows: usize, width: usize) {
        let index = &index[..rows];
        self.pool.rows(rows, rows_per_task(width), [(y, width)], |first, [y]| {
            for (r, y) in (first..).zip(y.chunks_exact_mut(width)) {
                y.copy_from_slice(&x[index[r] as usize * width..][..width]);
            }
        });
    }
}
