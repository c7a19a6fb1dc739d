//! Embeddings.

use ndarray::Array2;

use super::{Reference, view, view_mut};
use crate::backend::EmbedOps;

impl EmbedOps for Reference {
    fn embed_fwd(
        &self,
        y: &mut Vec<f64>,
        ids: &Vec<u32>,
        positions: &Vec<u32>,
        wte: &Array2<f64>,
        wpe: &Array2<f64>,
        tokens: usize,
    ) {
        let mut y = view_mut(y, tokens, wte.ncols());
        for n in 0..tokens {
            y.row_mut(n).assign(&(&wte.row(ids[n] as usize) + &wpe.row(positions[n] as usize)));
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
