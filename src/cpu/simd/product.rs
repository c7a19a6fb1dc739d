//! Small matrix products over strided rows, for what is too small or too short-lived to be packed.

use super::Simd;

/// Rows that share what is read of `x`.
const ROWS: usize = 4;

/// `y (rows, cols) = w x`, or `y += w x` if `add`, for `w (rows, terms)` and `x (terms, cols)`, each given with the
/// distance between its rows.
///
/// An element is one chain of multiply-adds over the terms in their order: in pieces it gives the bits of the whole.
#[inline(always)]
pub fn small_product<S: Simd>(
    s: S,
    (y, y_stride): (&mut [f32], usize),
    (w, w_stride): (&[f32], usize),
    (x, x_stride): (&[f32], usize),
    (rows, terms, cols): (usize, usize, usize),
    add: bool,
) {
    let whole = cols / (2 * S::LANES) * 2 * S::LANES;
    let fours = rows / ROWS * ROWS;
    for col in (0..whole).step_by(2 * S::LANES) {
        let x = (x.get(col..).unwrap_or_default(), x_stride);
        for row in (0..fours).step_by(ROWS) {
            let (y, w) = (&mut y[row * y_stride + col..], &w[row * w_stride..]);
            tile::<S, ROWS>(s, (y, y_stride), (w, w_stride), x, terms, add);
        }
        for row in fours..rows {
            let (y, w) = (&mut y[row * y_stride + col..], &w[row * w_stride..]);
            tile::<S, 1>(s, (y, y_stride), (w, w_stride), x, terms, add);
        }
    }
    for col in (whole..cols).step_by(S::LANES) {
        let width = S::LANES.min(cols - col);
        for row in 0..rows {
            let y = &mut y[row * y_stride + col..][..width];
            let mut sum = if add { s.load(y) } else { s.splat(0.0) };
            for (t, w) in w[row * w_stride..][..terms].iter().enumerate() {
                sum = s.fma(s.splat(*w), s.load(&x[t * x_stride + col..][..width]), sum);
            }
            s.store(y, sum);
        }
    }
}

/// `R` rows by two vectors of columns, summed in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize>(
    s: S,
    (y, y_stride): (&mut [f32], usize),
    (w, w_stride): (&[f32], usize),
    (x, x_stride): (&[f32], usize),
    terms: usize,
    add: bool,
) {
    let mut weights: [&[f32]; R] = [&[]; R];
    let mut sums = [[s.splat(0.0); 2]; R];
    for r in 0..R {
        weights[r] = &w[r * w_stride..][..terms];
        if add {
            let y = &y[r * y_stride..][..2 * S::LANES];
            sums[r] = [s.load(y), s.load(&y[S::LANES..])];
        }
    }
    for t in 0..terms {
        let x = &S::arrays(&x[t * x_stride..][..2 * S::LANES])[..2];
        let x = [s.load_array(&x[0]), s.load_array(&x[1])];
        for r in 0..R {
            let w = s.splat(weights[r][t]);
            sums[r] = [s.fma(w, x[0], sums[r][0]), s.fma(w, x[1], sums[r][1])];
        }
    }
    for r in 0..R {
        let (left, right) = y[r * y_stride..][..2 * S::LANES].split_at_mut(S::LANES);
        s.store(left, sums[r][0]);
        s.store(right, sums[r][1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::simd::Kernel;

    struct Products<'a> {
        y: &'a mut [f32],
        w: &'a [f32],
        x: &'a [f32],
        size: (usize, usize, usize),
        /// Terms of the first piece.
        cut: usize,
    }

    impl Kernel for Products<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Products { y, w, x, size: (rows, terms, cols), cut } = self;
            small_product(s, (&mut *y, cols + 1), (w, terms), (x, cols), (rows, cut, cols), false);
            let rest = (&w[cut..], terms);
            small_product(s, (y, cols + 1), rest, (&x[cut * cols..], cols), (rows, terms - cut, cols), true);
        }
    }

    #[test]
    fn sums_are_exact_and_the_same_in_pieces() {
        for (rows, terms, cols) in [(1, 1, 1), (4, 3, 32), (5, 7, 40), (6, 64, 67), (3, 2, 16), (8, 5, 64)] {
            let w: Vec<f32> = (0..rows * terms).map(|i| (i * 37 % 23) as f32 - 11.0).collect();
            let x: Vec<f32> = (0..terms * cols).map(|i| (i * 53 % 19) as f32 - 9.0).collect();
            for isa in Isa::available() {
                for cut in [0, terms / 2, terms] {
                    let mut y = vec![7.0; rows * (cols + 1)];
                    let products = Products { y: &mut y, w: &w, x: &x, size: (rows, terms, cols), cut };
                    isa.token().unwrap().run(products);
                    for (i, y) in y.iter().enumerate() {
                        let (r, c) = (i / (cols + 1), i % (cols + 1));
                        let sum = (0..terms).map(|t| w[r * terms + t] * x[(t * cols + c).min(x.len() - 1)]).sum();
                        assert_eq!(*y, if c < cols { sum } else { 7.0 }, "{rows}x{terms}x{cols} at {r}, {c} on {isa}");
                    }
                }
            }
        }
    }
}
