//! The groups of operations on the CPU; each file has the name of its group in [`backend`](crate::backend).

mod attention;
mod attention_bwd;
mod embed;
mod latent;
mod linear;
mod loss;
mod norm;
mod optim;
mod pool_bwd;

use std::ops::Range;

use super::Cpu;
use super::simd::{Kernel, Simd, add_rows};

/// Elements that make a task worth handing to another thread, for ops that pass over memory.
const GRAIN: usize = 1 << 14;

/// Rows of `width` elements that make a task.
fn rows_per_task(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// The spans `(start, end)` of `rows` rows.
fn spans(bounds: &[u32], rows: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    bounds[..2 * rows].as_chunks::<2>().0.iter().map(|[start, end]| (*start as usize, *end as usize))
}

/// The spans that have tokens in `tokens`, by their row, with those tokens.
fn spans_in(bounds: &[u32], rows: usize, tokens: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    spans(bounds, rows)
        .map(move |(start, end)| start.max(tokens.start)..end.min(tokens.end))
        .enumerate()
        .filter(|(_, common)| !common.is_empty())
}

/// Columns of a matrix of `rows` rows that make a task, where sums run down the columns: a few cache lines at least.
///
/// A column is never divided, so that its sum has one order.
fn columns_per_task(rows: usize) -> usize {
    (GRAIN / rows.max(1)).max(64)
}

impl Cpu {
    /// Adds every row of `x` to `y`.
    fn add_columns(&self, y: &mut [f32], x: &[f32]) {
        let width = y.len();
        let rows = x.len().checked_div(width).unwrap_or(0);
        self.pool.rows(width, columns_per_task(rows), [(y, 1)], |first, [y]| {
            self.run(AddRows { y, x, rows, width, first });
        });
    }
}

/// `y += Σ_t x_t` for columns of `x (rows, width)` from `first` on.
struct AddRows<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    rows: usize,
    width: usize,
    first: usize,
}

impl Kernel for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.rows > 0 {
            add_rows(s, self.y, &self.x[self.first..], self.rows, self.width);
        }
    }
}
