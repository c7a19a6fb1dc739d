//! The groups of operations on the CPU; each file has the name of its group in [`backend`](crate::backend).

mod attention;
mod embed;
mod latent;
mod linear;
mod loss;
mod norm;

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
