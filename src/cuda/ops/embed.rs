//! Embeddings.

use super::{first, positions, whole};
use crate::backend::EmbedOps;
use crate::cuda::driver::Arg;
use crate::cuda::problem::Problem;
use crate::cuda::{Buffer, Cuda, Weight, int};

impl EmbedOps for Cuda {
    fn embed_fwd(&self, y: &mut Buffer, tokens: &Buffer, wte: &Weight, wpe: &Weight, count: usize) {
        let width = wte.cols;
        assert_eq!(width, wpe.cols, "token and position embeddings differ in width");
        let args = [
            first(y, count * width),
            first(tokens, count),
            positions(tokens, count),
            whole(&wte.buffer),
            whole(&wpe.buffer),
            int(count),
            int(width),
        ];
        let types = Cuda::types_from(&wte.buffer, y);
        self.launch("embed_fwd", Problem::matrix(types, count, width), &args);
    }

    fn embed_bwd(
        &self,
        dwte: &mut Buffer,
        dwpe: &mut Buffer,
        dy: &Buffer,
        tokens: &Buffer,
        count: usize,
        width: usize,
    ) {
        self.scatter(dwte, dy, first(tokens, count), count, width);
        self.scatter(dwpe, dy, positions(tokens, count), count, width);
    }

    fn gather_rows_fwd(&self, y: &mut Buffer, x: &Buffer, index: &Buffer, rows: usize, width: usize) {
        let args = [first(y, rows * width), whole(x), first(index, rows), int(rows), int(width)];
        self.launch("gather_rows_fwd", Problem::matrix(self.act_types(), rows, width), &args);
    }

    fn gather_rows_bwd(&self, dx_acc: &mut Buffer, dy: &Buffer, index: &Buffer, rows: usize, width: usize) {
        self.scatter(dx_acc, dy, first(index, rows), rows, width);
    }
}

impl Cuda {
    /// `y_{index_r} += x_r`
    fn scatter(&self, y: &mut Buffer, x: &Buffer, index: Arg, rows: usize, width: usize) {
        let args = [whole(y), first(x, rows * width), index, int(rows), int(width)];
        let problem = Problem::matrix(Cuda::types_from(x, y), rows, width);
        self.launch("scatter_rows_bwd", Problem { depth: y.len() / width, ..problem }, &args);
    }
}
