//! Embeddings.

use ndarray::Array2;

use super::{Reference, view, view_mut};
use crate::backend::EmbedOps;

impl EmbedOps for Reference {
    fn embed_fwd(&self, y: &mut Vec<f64>, tokens: &Vec<u32>, wte: &Array2<f64>, wpe: &Array2<f64>, count: usize) {
        let (ids, positions) = tokens.split_at(count);
        let mut y = view_mut(y, count, wte.ncols());
        for n in 0..count {
            y.row_mut(n).assign(&(&wte.row(ids[n] as usize) + &wpe.row(positions[n] as usize)));
        }
    }

    fn embed_bwd(
        &self,
        dwte: &mut Vec<f64>,
        dwpe: &mut Vec<f64>,
        dy: &Vec<f64>,
        tokens: &Vec<u32>,
        count: usize,
        width: usize,
    ) {
        let (ids, positions) = tokens.split_at(count);
        for n in 0..count {
            for c in 0..width {
                dwte[ids[n] as usize * width + c] += dy[n * width + c];
                dwpe[positions[n] as usize * width + c] += dy[n * width + c];
            }
        }
    }

    fn gather_rows_bwd(&self, dx_acc: &mut Vec<f64>, dy: &Vec<f64>, index: &Vec<u32>, rows: usize, width: usize) {
        for r in 0..rows {
            for c in 0..width {
                dx_acc[index[r] as usize * width + c] += dy[r * width + c];
            }
        }
    }

    fn gather_rows_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, index: &Vec<u32>, rows: usize, width: usize) {
        let x = view(x, x.len() / width, width);
        let mut y = view_mut(y, rows, width);
        for r in 0..rows {
            y.row_mut(r).assign(&x.row(index[r] as usize));
        }
    }
}
