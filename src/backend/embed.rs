//! Embeddings.

use super::Storage;

/// Token and position embeddings, and picking rows.
pub trait EmbedOps: Storage {
    /// `y_n = wte[id_n] + wpe[position_n]`; `y (N, C)`, `tokens (2, N)`: ids, then positions.
    fn embed_fwd(&self, y: &mut Self::Act, tokens: &Self::Ids, wte: &Self::Weight, wpe: &Self::Weight, count: usize);

    /// `dwte[id_n] += dy_n`, `dwpe[position_n] += dy_n`; `dwte (V, C)`, `dwpe (P, C)`, `dy (N, C)`; `tokens` as in
    /// [`embed_fwd`](Self::embed_fwd).
    fn embed_bwd(
        &self,
        dwte: &mut Self::Real,
        dwpe: &mut Self::Real,
        dy: &Self::Act,
        tokens: &Self::Ids,
        count: usize,
        width: usize,
    );

    /// `y_r = x_{index_r}`; `y (rows, C)`, `x (N, C)`, `index (rows)`.
    fn gather_rows_fwd(&self, y: &mut Self::Act, x: &Self::Act, index: &Self::Ids, rows: usize, width: usize);

    /// `dx_{index_r} += dy_r`; shapes as in [`gather_rows_fwd`](Self::gather_rows_fwd).
    fn gather_rows_bwd(&self, dx_acc: &mut Self::Act, dy: &Self::Act, index: &Self::Ids, rows: usize, width: usize);
}
