//! The oracle: every operation as the plainest loops that can be read against its formula, in f64.
//!
//! Slow by intent. Faster backends are tested against it; nothing else should be run with it than small models.

mod attention;
mod embed;
mod latent;
mod linear;
mod loss;
mod norm;
mod optim;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::backend::{HostFloat, Matrix, Role, Storage};
use crate::error::Result;

/// The f64 reference device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Storage for Reference {
    type Act = Vec<f64>;
    type Real = Vec<f64>;
    type Ids = Vec<u32>;
    /// As stored, whatever its role.
    type Weight = Array2<f64>;

    fn act(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn real(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn ids(&self, len: usize) -> Result<Vec<u32>> {
        Ok(vec![0; len])
    }

    fn weight(&self, matrix: Matrix<'_>, _role: Role) -> Result<Array2<f64>> {
        matrix.check()?;
        Ok(Array2::from_shape_fn((matrix.rows, matrix.cols), |(r, c)| f64::from(matrix.data[r * matrix.cols + c])))
    }

    fn refresh(&self, weight: &mut Array2<f64>, values: &Vec<f64>, _role: Role) {
        weight.iter_mut().zip(values).for_each(|(w, value)| *w = *value);
    }

    fn write_act<F: HostFloat>(&self, dst: &mut Vec<f64>, src: &[F]) {
        self.write_real(dst, src);
    }

    fn write_real<F: HostFloat>(&self, dst: &mut Vec<f64>, src: &[F]) {
        for (d, &s) in dst[..src.len()].iter_mut().zip(src) {
            *d = s.to_f64();
        }
    }

    fn write_ids(&self, dst: &mut Vec<u32>, src: &[u32]) {
        dst[..src.len()].copy_from_slice(src);
    }

    fn read_act<F: HostFloat>(&self, dst: &mut [F], src: &Vec<f64>) {
        self.read_real(dst, src);
    }

    fn read_real_at<F: HostFloat>(&self, dst: &mut [F], src: &Vec<f64>, start: usize) {
        for (d, &s) in dst.iter_mut().zip(&src[start..]) {
            *d = F::from_f64(s);
        }
    }
}

/// The first `rows · width` elements as a matrix.
fn view(x: &[f64], rows: usize, width: usize) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape((rows, width), &x[..rows * width]).expect("the slice has this length")
}

/// The first `rows · width` elements as a matrix.
fn view_mut(x: &mut [f64], rows: usize, width: usize) -> ArrayViewMut2<'_, f64> {
    ArrayViewMut2::from_shape((rows, width), &mut x[..rows * width]).expect("the slice has this length")
}

/// The token range of span `row`.
fn span(bounds: &[u32], row: usize) -> std::ops::Range<usize> {
    bounds[2 * row] as usize..bounds[2 * row + 1] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_has_all_its_values() {
        for (rows, cols) in [(2, 2), (1, 2), (usize::MAX, 3)] {
            assert!(Reference.weight(Matrix { data: &[0.0; 3], rows, cols }, Role::Linear).is_err());
        }
        assert!(Reference.weight(Matrix { data: &[0.0; 3], rows: 1, cols: 3 }, Role::Linear).is_ok());
    }
}
