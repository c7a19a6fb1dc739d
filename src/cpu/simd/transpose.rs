//! Copies of matrices: transposed, a square of vectors at a time, and of rows that lie far apart.

use std::ops::Range;

use super::{Kernel, Simd};

/// Lanes of the widest vector.
pub(super) const MOST_LANES: usize = 16;

/// Rows that are not worth a square.
const FEW: usize = 4;

/// `y = xᵀ` for `x (rows, cols)`, each given with the distance between its rows.
#[inline(always)]
pub fn transpose<S: Simd>(
    s: S,
    (y, y_stride): (&mut [f32], usize),
    (x, x_stride): (&[f32], usize),
    (rows, cols): (usize, usize),
) {
    const { assert!(S::LANES <= MOST_LANES) };
    if rows < FEW {
        for (r, x) in x.chunks(x_stride.max(1)).take(rows).enumerate() {
            for (c, x) in x[..cols].iter().enumerate() {
                y[c * y_stride + r] = *x;
            }
        }
        return;
    }
    if rows < S::LANES && y_stride == rows {
        return transpose_few(s, y, (x, x_stride), (rows, cols));
    }
    for col in (0..cols).step_by(S::LANES) {
        for row in (0..rows).step_by(S::LANES) {
            let (height, width) = (S::LANES.min(rows - row), S::LANES.min(cols - col));
            let mut square = [s.splat(0.0); MOST_LANES];
            if height == S::LANES && width == S::LANES {
                for r in 0..S::LANES {
                    square[r] = s.load_array(&S::arrays(&x[(row + r) * x_stride + col..][..S::LANES])[0]);
                }
                s.transpose(&mut square[..S::LANES]);
                for c in 0..S::LANES {
                    s.store(&mut y[(col + c) * y_stride + row..][..S::LANES], square[c]);
                }
            } else {
                for r in 0..height {
                    square[r] = s.load(&x[(row + r) * x_stride + col..][..width]);
                }
                s.transpose(&mut square[..S::LANES]);
                for c in 0..width {
                    s.store(&mut y[(col + c) * y_stride + row..][..height], square[c]);
                }
            }
        }
    }
}

/// `y = xᵀ` for `x (rows, cols)` of fewer rows than a vector has lanes, where rows of `y` lie side by side: whole vectors are
/// stored, and what is too much of one is overwritten by the next.
#[inline(always)]
fn transpose_few<S: Simd>(s: S, y: &mut [f32], (x, x_stride): (&[f32], usize), (rows, cols): (usize, usize)) {
    let y = &mut y[..rows * cols];
    for col in (0..cols).step_by(S::LANES) {
        let width = S::LANES.min(cols - col);
        let mut square = [s.splat(0.0); MOST_LANES];
        for r in 0..rows {
            square[r] = s.load(&x[r * x_stride + col..][..width]);
        }
        s.transpose(&mut square[..S::LANES]);
        for c in 0..width {
            s.store(&mut y[(col + c) * rows..], square[c]);
        }
    }
}

/// `y_t = a · x_t` for rows `x_t`, given with the distance between them: each one chain of multiply-adds in the order of
/// the components, as [`small_product`](super::small_product) makes it.
#[inline(always)]
pub fn dots<S: Simd>(s: S, y: &mut [f32], a: &[f32], (x, x_stride): (&[f32], usize)) {
    let count = y.len();
    // Front to back, as a square is read column by column.
    fetch(s, x, x_stride, (0..count.min(S::LANES), a.len()));
    for first in (0..y.len()).step_by(S::LANES) {
        let rows = S::LANES.min(y.len() - first);
        fetch(s, x, x_stride, (first + rows..count.min(first + rows + S::LANES), a.len()));
        let mut sum = s.splat(0.0);
        for col in (0..a.len()).step_by(S::LANES) {
            let a = &a[col..a.len().min(col + S::LANES)];
            let mut square = [s.splat(0.0); MOST_LANES];
            for r in 0..rows {
                square[r] = s.load(&x[(first + r) * x_stride + col..][..a.len()]);
            }
            s.transpose(&mut square[..S::LANES]);
            for (a, column) in a.iter().zip(&square) {
                sum = s.fma(s.splat(*a), *column, sum);
            }
        }
        s.store(&mut y[first..first + rows], sum);
    }
}

/// Copies a row to `y`, of a matrix whose rows are `stride` apart and are copied one after the other: so far apart that the
/// processor does not foresee them, which is why a later one is asked for. In vectors, as rows may be shorter than a call
/// of a copy is worth.
#[inline(always)]
pub fn copy_row<S: Simd>(s: S, y: &mut [f32], row: &[f32], stride: usize) {
    const AHEAD: usize = 16;
    let y = &mut y[..row.len()];
    for i in (0..row.len()).step_by(S::LANES) {
        let x = s.load(&row[i..]);
        s.prefetch(row.as_ptr().wrapping_add(AHEAD * stride + i));
        s.store(&mut y[i..], x);
    }
}

/// Asks for rows of `len` elements, front to back.
#[inline(always)]
pub fn fetch<S: Simd>(s: S, x: &[f32], stride: usize, (rows, len): (Range<usize>, usize)) {
    const LINE: usize = 16;
    for row in rows {
        for i in (0..len).step_by(LINE) {
            s.prefetch(x.as_ptr().wrapping_add(row * stride + i));
        }
    }
}

/// [`transpose`] by itself.
pub struct Transpose<'a> {
    /// What is written, and the distance between its rows.
    pub y: (&'a mut [f32], usize),
    /// What is read, and the distance between its rows.
    pub x: (&'a [f32], usize),
    /// Rows and columns of `x`.
    pub size: (usize, usize),
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        transpose(s, self.y, self.x, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn every_element_finds_its_place_and_no_other_is_touched() {
        for (rows, cols) in [(0, 5), (1, 1), (3, 20), (12, 40), (16, 16), (17, 33), (32, 32), (33, 7)] {
            let (x_stride, y_stride) = (cols + 3, rows + 2);
            let x: Vec<f32> = (0..rows * x_stride).map(|i| i as f32).collect();
            for isa in Isa::available() {
                let mut y = vec![-1.0; cols * y_stride];
                isa.token().unwrap().run(Transpose { y: (&mut y, y_stride), x: (&x, x_stride), size: (rows, cols) });
                for (i, y) in y.iter().enumerate() {
                    let (c, r) = (i / y_stride, i % y_stride);
                    let expected = if r < rows { x[r * x_stride + c] } else { -1.0 };
                    assert_eq!(*y, expected, "{rows} x {cols} at {c}, {r} on {isa}");
                }
            }
        }
    }
}
