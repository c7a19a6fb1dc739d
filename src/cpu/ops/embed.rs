//! Embeddings.

use super::{columns_per_task, rows_per_task};
use crate::backend::EmbedOps;
use crate::cpu::gemm::Weight;
use crate::cpu::{Buffer, Cpu};

impl EmbedOps for Cpu {
    fn embed_fwd(&self, y: &mut Buffer<f32>, tokens: &Buffer<u32>, wte: &Weight, wpe: &Weight, count: usize) {
        let width = wte.inputs();
        assert_eq!(width, wpe.inputs(), "token and position embeddings differ in width");
        let (ids, positions) = tokens[..2 * count].split_at(count);
        self.pool.rows(count, rows_per_task(width), [(y, width)], |first, [y]| {
            for (n, y) in (first..).zip(y.chunks_exact_mut(width)) {
                let sums = wte.row(ids[n] as usize).zip(wpe.row(positions[n] as usize)).map(|(a, b)| a + b);
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = sum;
                }
            }
        });
    }

    fn embed_bwd(
        &self,
        dwte: &mut Buffer<f32>,
        dwpe: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        tokens: &Buffer<u32>,
        count: usize,
        width: usize,
    ) {
        let (ids, positions) = tokens[..2 * count].split_at(count);
        self.add_to_rows(dwte, dy, ids, width);
        self.add_to_rows(dwpe, dy, positions, width);
    }

    fn gather_rows_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, index: &Buffer<u32>, rows: usize, width: usize) {
        let index = &index[..rows];
        self.pool.rows(rows, rows_per_task(width), [(y, width)], |first, [y]| {
            for (r, y) in (first..).zip(y.chunks_exact_mut(width)) {
                y.copy_from_slice(&x[index[r] as usize * width..][..width]);
            }
        });
    }

    fn gather_rows_bwd(
        &self,
        dx_acc: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        index: &Buffer<u32>,
        rows: usize,
        width: usize,
    ) {
        self.add_to_rows(dx_acc, dy, &index[..rows], width);
    }
}

impl Cpu {
    /// `table_{index_n} += x_n` for all n in their order; threads divide the columns.
    fn add_to_rows(&self, table: &mut [f32], x: &[f32], index: &[u32], width: usize) {
        let rows = table.len() / width;
        self.pool.tiles(rows, rows.max(1), [(table, width, columns_per_task(index.len()))], |[mut tile]| {
            let cols = tile.cols();
            for (row, x) in index.iter().zip(x.chunks_exact(width)) {
                for (sum, x) in tile.row(*row as usize).iter_mut().zip(&x[cols.clone()]) {
                    *sum += x;
                }
            }
        });
    }
}
