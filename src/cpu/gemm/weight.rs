//! A weight as the matrix products want it.

use crate::backend::Matrix;
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::Pool;
use crate::error::Result;

/// A matrix of parameters `W (in, out)`, laid out for one implementation of the matrix product.
pub struct Weight {
    data: Buffer<f32>,
    layout: Layout,
    /// `in`.
    pub(super) inputs: usize,
    /// `out`.
    pub(super) outputs: usize,
}

/// Where the element of input `k` and output `n` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// At `k · inputs + n · outputs`.
    Strided { inputs: usize, outputs: usize },
    /// In panel `n / width`; panels follow each other. A panel holds its columns for `k = 0`, then for `k = 1`, …,
    /// and has zeros where the last one reaches beyond the matrix.
    Panels { width: usize },
}

impl Weight {
    /// Keeps a table as it is stored: a row of the table is an output.
    pub fn table(matrix: Matrix<'_>) -> Result<Self> {
        Self::strided(matrix, true)
    }

    /// Keeps a matrix as it is stored.
    pub(super) fn strided(matrix: Matrix<'_>, transposed: bool) -> Result<Self> {
        let (inputs, outputs) = sizes(matrix, transposed);
        let layout = if transposed {
            Layout::Strided { inputs: 1, outputs: inputs }
        } else {
            Layout::Strided { inputs: outputs, outputs: 1 }
        };
        Ok(Weight { data: Buffer::from_slice(matrix.data)?, layout, inputs, outputs })
    }

    /// Packs a matrix into panels of `width` outputs.
    pub(super) fn panels(pool: &Pool, matrix: Matrix<'_>, transposed: bool, width: usize) -> Result<Self> {
        let (inputs, outputs) = sizes(matrix, transposed);
        let (panels, panel_len) = (outputs.div_ceil(width), inputs.saturating_mul(width));
        let mut data = Buffer::try_zeroed(panels.saturating_mul(panel_len))?;
        pool.rows(panels, 1, [(&mut data, panel_len)], |panel, [packed]| {
            let first = panel * width;
            let count = width.min(outputs - first);
            if transposed {
                for n in 0..count {
                    let column = &matrix.data[(first + n) * inputs..][..inputs];
                    for (slot, w) in packed.iter_mut().skip(n).step_by(width).zip(column) {
                        *slot = *w;
                    }
                }
            } else {
                for (k, slots) in packed.chunks_exact_mut(width).enumerate() {
                    slots[..count].copy_from_slice(&matrix.data[k * outputs + first..][..count]);
                }
            }
        });
        Ok(Weight { data, layout: Layout::Panels { width }, inputs, outputs })
    }

    /// `in`, the width of a row of the table.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// `out`, the number of rows of the table.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The weights of output `n`, which is row `n` of a table.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn row(&self, n: usize) -> impl Iterator<Item = f32> {
        assert!(n < self.outputs, "row {n} of a table with {}", self.outputs);
        let (start, stride) = match self.layout {
            Layout::Strided { inputs, outputs } => (n * outputs, inputs),
            Layout::Panels { width } => (n / width * self.inputs * width + n % width, width),
        };
        self.data[start..].iter().step_by(stride).take(self.inputs).copied()
    }

    /// Panel `index`, of panels that are `width` wide.
    #[inline]
    pub(super) fn panel(&self, index: usize, width: usize) -> &[f32] {
        assert_eq!(self.layout, Layout::Panels { width }, "a weight prepared for another matrix product");
        &self.data[index * self.inputs * width..][..self.inputs * width]
    }

    /// All elements, and the distances between inputs and between outputs.
    pub(super) fn as_strided(&self) -> (&[f32], usize, usize) {
        match self.layout {
            Layout::Strided { inputs, outputs } => (&self.data, inputs, outputs),
            Layout::Panels { .. } => panic!("a weight prepared for another matrix product"),
        }
    }
}

/// `(in, out)`.
fn sizes(matrix: Matrix<'_>, transposed: bool) -> (usize, usize) {
    if transposed { (matrix.cols, matrix.rows) } else { (matrix.rows, matrix.cols) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gives_the_same_rows() {
        let pool = Pool::new(2).unwrap();
        for (rows, cols, width) in [(1, 1, 4), (5, 3, 4), (8, 7, 8), (33, 9, 32)] {
            let data: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
            let matrix = Matrix { data: &data, rows, cols };
            for transposed in [false, true] {
                let (inputs, outputs) = sizes(matrix, transposed);
                let panels = Weight::panels(&pool, matrix, transposed, width).unwrap();
                let strided = Weight::strided(matrix, transposed).unwrap();
                for n in 0..outputs {
                    let at = |k| if transposed { data[n * cols + k] } else { data[k * cols + n] };
                    let expected: Vec<f32> = (0..inputs).map(at).collect();
                    assert!(panels.row(n).eq(expected.iter().copied()));
                    assert!(strided.row(n).eq(expected.iter().copied()));
                }
                let padding = panels.data.iter().filter(|x| **x == 0.0).count();
                assert_eq!(padding, (outputs.next_multiple_of(width) - outputs) * inputs);
            }
        }
    }
}
