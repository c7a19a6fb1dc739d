//! A weight as the matrix products want it.

use std::ops::Range;

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
        let mut data = Buffer::try_zeroed(Panels::len(inputs, outputs, width))?;
        Panels::pack(pool, &mut data, matrix, transposed, width);
        Ok(Weight { data, layout: Layout::Panels { width }, inputs, outputs })
    }

    /// Takes over other values, stored as the first ones were.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn refresh(&mut self, pool: &Pool, values: &[f32], transposed: bool) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let values = &values[..inputs * outputs];
        match self.layout {
            Layout::Strided { .. } => self.data.copy_from_slice(values),
            Layout::Panels { width } => {
                let (rows, cols) = if transposed { (outputs, inputs) } else { (inputs, outputs) };
                Panels::pack(pool, &mut self.data, Matrix { data: values, rows, cols }, transposed, width);
            }
        }
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

    /// The panels, which are `width` wide.
    pub(super) fn as_panels(&self, width: usize) -> Panels<'_> {
        assert_eq!(self.layout, Layout::Panels { width }, "a weight prepared for another matrix product");
        Panels { data: &self.data, width, inputs: self.inputs, outputs: self.outputs }
    }

    /// All elements, and the distances between inputs and between outputs.
    pub(super) fn as_strided(&self) -> (&[f32], usize, usize) {
        match self.layout {
            Layout::Strided { inputs, outputs } => (&self.data, inputs, outputs),
            Layout::Panels { .. } => panic!("a weight prepared for another matrix product"),
        }
    }
}

/// A matrix `(in, out)` in panels, as [`Layout::Panels`] describes them.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    data: &'a [f32],
    width: usize,
    /// `in`.
    pub inputs: usize,
    /// `out`.
    pub outputs: usize,
}

impl<'a> Panels<'a> {
    /// Floats that the panels of a matrix take.
    pub fn len(inputs: usize, outputs: usize, width: usize) -> usize {
        outputs.next_multiple_of(width) * inputs
    }

    /// Panel `index`.
    #[inline]
    pub fn panel(self, index: usize) -> &'a [f32] {
        &self.data[index * self.inputs * self.width..][..self.inputs * self.width]
    }

    /// Packs a matrix, stored `(out, in)` if `transposed`, into panels of `width` outputs; `data` is as long as they are.
    pub fn pack(pool: &Pool, data: &'a mut [f32], matrix: Matrix<'_>, transposed: bool, width: usize) -> Self {
        let (inputs, outputs) = sizes(matrix, transposed);
        for_each_panel(pool, data, (inputs, outputs), width, |first, packed| {
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
        Panels { data, width, inputs, outputs }
    }

    /// Packs rows `range` of the transpose, which are outputs of `self`; `data` is as long as their panels are.
    ///
    /// # Panics
    /// If the range does not start with a panel of `self`.
    pub fn pack_transpose(pool: &Pool, data: &'a mut [f32], of: Panels<'_>, range: Range<usize>) -> Self {
        let (width, inputs, outputs) = (of.width, range.len(), of.inputs);
        assert!(range.start.is_multiple_of(width) && range.end <= of.outputs, "{range:?} of {}", of.outputs);
        for_each_panel(pool, data, (inputs, outputs), width, |first, packed| {
            let count = width.min(outputs - first);
            // Block by block: a panel of one matrix is a row of blocks of the other.
            for (block, packed) in packed.chunks_mut(width * width).enumerate() {
                let rows = &of.panel(range.start / width + block)[first * width..][..count * width];
                for (k, packed) in packed.chunks_exact_mut(width).enumerate() {
                    for n in 0..count {
                        packed[n] = rows[n * width + k];
                    }
                }
            }
        });
        Panels { data, width, inputs, outputs }
    }
}

/// Calls `pack(first output, panel)` for all panels of a matrix of `inputs` by `outputs`. What a panel holds beyond the
/// matrix is never read into a result.
fn for_each_panel(
    pool: &Pool,
    data: &mut [f32],
    (inputs, outputs): (usize, usize),
    width: usize,
    pack: impl Fn(usize, &mut [f32]) + Sync,
) {
    /// Floats that make a task.
    const GRAIN: usize = 1 << 14;
    let (panels, len) = (outputs.div_ceil(width), inputs * width);
    let panels_per_task = (GRAIN / len.max(1)).max(1);
    pool.rows(panels, panels_per_task, [(data, len)], |first, [packed]| {
        for (panel, packed) in (first..).zip(packed.chunks_exact_mut(len.max(1))) {
            pack(panel * width, packed);
        }
    });
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

                let range = (outputs / 2 / width * width)..outputs;
                let mut scratch = vec![f32::NAN; Panels::len(range.len(), inputs, width)];
                let transpose = Panels::pack_transpose(&pool, &mut scratch, panels.as_panels(width), range.clone());
                for (k, n) in range.enumerate() {
                    let row = (0..inputs).map(|i| transpose.panel(i / width)[k * width + i % width]);
                    assert!(strided.row(n).eq(row), "row {n} of the transpose");
                }
            }
        }
    }
}
