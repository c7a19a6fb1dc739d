//! Embeddings.

use super::{first, whole};
use crate::backend::EmbedOps;
use crate::cuda::problem::Problem;
use crate::cuda::{Buffer, Cuda, Weight, int};

impl EmbedOps for Cuda {
    fn embed_fwd(&self, y: &mut Buffer, ids: &Buffer, positions: &Buffer, wte: &Weight, wpe: &Weight, tokens: usize) {
        let width = wte.cols;
        assert_eq!(width, wpe.cols, "token and position embeddings differ in width");
        let args = [
            first(y, tokens * width),
            first(ids, tokens),
            first(positions, tokens),
            whole(&wte.buffer),
            whole(&wpe.buffer),
            int(tokens),
            int(width),
        ];
        let types = Cuda::types_from(&wte.buffer, y);
        self.launch("embed_fwd", Problem::matrix(types, tokens, width), &args);
    }

    fn embed_bwd(
        &self,
        dwte: &mut Buffer,
        dwpe: &mut Buffer,
        dy: &Buffer,
        ids: &Buffer,
        positions: &Buffer,
        tokens: usize,
        width: usize,
    ) {
        self.scatter(dwte, dy, ids, tokens, width);
        self.scatter(dwpe, dy, positions, tokens, width);
    }

    fn gather_rows_fwd(&self, y: &mut Buffer, x: &Buffer, index: &Buffer, rows: usize, width: usize) {
        let args = [first(y, rows * width), whole(x), first(index, rows), int(rows), int(width)];
        self.launch("gather_rows_fwd", Problem::matrix(self.act_types(), rows, width), &args);
    }

    fn gather_rows_bwd(&self, dx_acc: &mut Buffer, dy: &Buffer, index: &Buffer, rows: usize, width: usize) {
        self.scatter(dx_acc, dy, index, rows, width);
    }
}

impl Cuda {
    /// `y_{index_r} += x_r`
    fn scatter(&self, y: &mut Buffer, x: &Buffer, index: &Buffer, rows: usize, width: usize) {
        let args = [whole(y), first(x, rows * width), first(index, rows), int(rows), int(width)];
        let problem = Problem::matrix(Cuda::types_from(x, y), rows, width);
        self.launch("scatter_rows_bwd", Problem { depth: y.len() / width, ..problem }, &args);
    }
}
