//! A weight as the matrix products want it.

use std::ops::Range;
use std::sync::OnceLock;

use super::format::{Bf16Words, Format, Greatest, Int8Words, bf16_words_of, element, int8_bits, int8_scale};
use super::micro::Piece;
use crate::backend::Matrix;
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::{Pool, with_scratch};
use crate::cpu::simd::{Kernel, Simd, Token, Transpose, copy_row, fetch, transpose};
use crate::error::Result;

/// A matrix of parameters `W (in, out)`, laid out for one implementation of the matrix product.
pub struct Weight {
    data: Buffer<f32>,
    order: Order,
    /// `in`.
    pub(super) inputs: usize,
    /// `out`.
    pub(super) outputs: usize,
    /// Panels of `Wᵀ`, from the first time on that they were asked for.
    transpose: OnceLock<Buffer<f32>>,
}

/// Where the element of input `k` and output `n` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// At `k · inputs + n · outputs`.
    Strided { inputs: usize, outputs: usize },
    /// In a panel.
    Panels(Layout),
}

/// Panels that follow each other. A panel holds the first words of its `width` outputs, then the second ones, …, and behind
/// all words what the format has on top; where the last panel reaches beyond the matrix it has zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Outputs of a panel.
    pub width: usize,
    /// An output's words are filled up with zeros to a multiple of this.
    pub align: usize,
    /// What is in a word.
    pub format: Format,
}

impl Layout {
    /// Words of an output.
    pub fn words(self, inputs: usize) -> usize {
        inputs.div_ceil(self.format.group()).next_multiple_of(self.align)
    }

    /// Floats of a panel.
    fn panel(self, inputs: usize) -> usize {
        (self.words(inputs) + self.format.extras()) * self.width
    }

    /// Floats that the panels of a matrix take.
    pub fn len(self, inputs: usize, outputs: usize) -> usize {
        outputs.div_ceil(self.width) * self.panel(inputs)
    }
}

impl Weight {
    /// Keeps a table as it is stored: a row of the table is an output.
    pub fn table(matrix: Matrix<'_>) -> Result<Self> {
        Self::strided(matrix, true)
    }

    /// Keeps a matrix as it is stored.
    pub(super) fn strided(matrix: Matrix<'_>, transposed: bool) -> Result<Self> {
        let (inputs, outputs) = sizes(matrix, transposed);
        let order = if transposed {
            Order::Strided { inputs: 1, outputs: inputs }
        } else {
            Order::Strided { inputs: outputs, outputs: 1 }
        };
        Ok(Weight { data: Buffer::from_slice(matrix.data)?, order, inputs, outputs, transpose: OnceLock::new() })
    }

    /// Packs a matrix into panels.
    pub(super) fn panels(
        pool: &Pool,
        token: Token,
        matrix: Matrix<'_>,
        transposed: bool,
        layout: Layout,
    ) -> Result<Self> {
        let (inputs, outputs) = sizes(matrix, transposed);
        let mut data = Buffer::try_zeroed(layout.len(inputs, outputs))?;
        Panels::pack(pool, token, &mut data, matrix, transposed, layout);
        Ok(Weight { data, order: Order::Panels(layout), inputs, outputs, transpose: OnceLock::new() })
    }

    /// Takes over other values, stored as the first ones were.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn refresh(&mut self, pool: &Pool, token: Token, values: &[f32], transposed: bool) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let values = &values[..inputs * outputs];
        let (rows, cols) = if transposed { (outputs, inputs) } else { (inputs, outputs) };
        let matrix = Matrix { data: values, rows, cols };
        match self.order {
            Order::Strided { .. } => self.data.copy_from_slice(values),
            Order::Panels(layout) => {
                Panels::pack(pool, token, &mut self.data, matrix, transposed, layout);
                if let Some(transpose) = self.transpose.get_mut() {
                    Panels::pack(pool, token, transpose, matrix, !transposed, layout);
                }
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
        // Where its words are, how far apart, how many elements each has, and what they are multiplied with.
        let (start, stride, format, scale) = match self.order {
            Order::Strided { inputs, outputs } => (n * outputs, inputs, Format::F32, 1.0),
            Order::Panels(layout) => {
                let Layout { width, format, .. } = layout;
                let panels = self.as_panels(layout);
                let scale = if format.extras() > 0 { panels.extras(n / width)[n % width] } else { 1.0 };
                (n / width * layout.panel(self.inputs) + n % width, width, format, scale)
            }
        };
        let words = self.data.get(start..).unwrap_or_default().iter().step_by(stride);
        let elements = words.flat_map(move |word| (0..format.group()).map(move |i| scale * element(format, *word, i)));
        elements.take(self.inputs)
    }

    /// The panels, which are laid out like this.
    pub(super) fn as_panels(&self, layout: Layout) -> Panels<'_> {
        assert_eq!(self.order, Order::Panels(layout), "a weight prepared for another matrix product");
        Panels { data: &self.data, layout, inputs: self.inputs, outputs: self.outputs }
    }

    /// Panels of `Wᵀ`, which are made the first time and kept.
    ///
    /// # Panics
    /// There is no memory for them.
    pub(super) fn transpose(&self, pool: &Pool, token: Token) -> Panels<'_> {
        let Order::Panels(layout) = self.order else { panic!("a weight prepared for another matrix product") };
        let data = self.transpose.get_or_init(|| {
            let values: Vec<f32> = (0..self.outputs).flat_map(|n| self.row(n)).collect();
            let matrix = Matrix { data: &values, rows: self.outputs, cols: self.inputs };
            let mut data = Buffer::zeroed(layout.len(self.outputs, self.inputs));
            Panels::pack(pool, token, &mut data, matrix, false, layout);
            data
        });
        Panels { data, layout, inputs: self.outputs, outputs: self.inputs }
    }

    /// All elements, and the distances between inputs and between outputs.
    pub(super) fn as_strided(&self) -> (&[f32], usize, usize) {
        match self.order {
            Order::Strided { inputs, outputs } => (&self.data, inputs, outputs),
            Order::Panels(_) => panic!("a weight prepared for another matrix product"),
        }
    }
}

/// Rows between one that is packed and one that is asked for.
const AHEAD: usize = 16;

/// Panels that are filled together from rows of which each has a part.
const SIDE_BY_SIDE: usize = 8;

/// A matrix `(in, out)` in panels.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    data: &'a [f32],
    layout: Layout,
    /// `in`.
    pub inputs: usize,
    /// `out`.
    pub outputs: usize,
}

impl<'a> Panels<'a> {
    /// Words of an output.
    pub fn words(self) -> usize {
        self.layout.words(self.inputs)
    }

    fn panel(self, index: usize) -> &'a [f32] {
        let len = self.layout.panel(self.inputs);
        &self.data[index * len..][..len]
    }

    /// What lies behind words `words` of panel `index`, as much again at most, up to the panel of column `end`.
    pub fn after(self, index: usize, words: &Range<usize>, end: usize) -> &'a [f32] {
        let Layout { width, .. } = self.layout;
        let panel = self.layout.panel(self.inputs);
        let start = index * panel + words.end * width;
        let end = (start + words.len() * width).min(end.div_ceil(width) * panel);
        self.data.get(start..end).unwrap_or_default()
    }

    /// What follows the words of panel `index`.
    pub fn extras(self, index: usize) -> &'a [f32] {
        &self.panel(index)[self.words() * self.layout.width..]
    }

    /// Words `words` of panel `index`.
    #[inline]
    pub fn piece(self, index: usize, words: &Range<usize>) -> Piece<'a> {
        let width = self.layout.width;
        let (all, extras) = self.panel(index).split_at(self.words() * width);
        Piece { words: &all[words.start * width..words.end * width], extras }
    }

    /// Packs a matrix, stored `(out, in)` if `transposed`; `data` is as long as the panels are.
    pub fn pack(
        pool: &Pool,
        token: Token,
        data: &'a mut [f32],
        matrix: Matrix<'_>,
        transposed: bool,
        layout: Layout,
    ) -> Self {
        let (inputs, outputs) = sizes(matrix, transposed);
        if transposed {
            for_each_panel(pool, data, (inputs, outputs), layout, 1, |first, packed| {
                let count = layout.width.min(outputs - first);
                let rows = &matrix.data[first * inputs..][..count * inputs];
                let narrow = if layout.format == Format::F32 { 0 } else { inputs.div_ceil(layout.format.group()) };
                with_scratch(count * narrow, |scratch| token.run(PackRows { packed, scratch, rows, inputs, layout }));
            });
        } else {
            for_each_panel(pool, data, (inputs, outputs), layout, SIDE_BY_SIDE, |first, packed| {
                token.run(PackColumns { packed, matrix, first, layout });
            });
        }
        Panels { data, layout, inputs, outputs }
    }

    /// Packs rows `range` of the transpose, which are outputs of `self`, of f32; `data` is as long as their panels are.
    ///
    /// # Panics
    /// If the range does not start with a panel of `self`.
    pub fn pack_transpose(pool: &Pool, token: Token, data: &'a mut [f32], of: Panels<'_>, range: Range<usize>) -> Self {
        let (layout, inputs, outputs) = (of.layout, range.len(), of.inputs);
        let width = layout.width;
        assert!(range.start.is_multiple_of(width) && range.end <= of.outputs, "{range:?} of {}", of.outputs);
        for_each_panel(pool, data, (inputs, outputs), layout, 1, |first, packed| {
            let count = width.min(outputs - first);
            // Block by block: a panel of one matrix is a row of blocks of the other.
            for (block, packed) in packed.chunks_mut(width * width).enumerate() {
                let rows = &of.panel(range.start / width + block)[first * width..][..count * width];
                let size = (count, packed.len() / width);
                token.run(Transpose { y: (packed, width), x: (rows, width), size });
            }
        });
        Panels { data, layout, inputs, outputs }
    }
}

/// Fills a panel whose outputs are rows of the matrix.
struct PackRows<'a> {
    packed: &'a mut [f32],
    /// The rows' words, unless they are those of the matrix.
    scratch: &'a mut [f32],
    rows: &'a [f32],
    inputs: usize,
    layout: Layout,
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { packed, scratch, rows, inputs, layout } = self;
        let (width, words) = (layout.width, layout.words(inputs));
        let (packed, extras) = packed.split_at_mut(words * width);
        let (count, used) = (rows.len() / inputs.max(1), inputs.div_ceil(layout.format.group()));
        if layout.format == Format::F32 {
            return transpose(s, (packed, width), (rows, inputs), (count, used));
        }
        for n in 0..count {
            let (x, words) = (&rows[n * inputs..][..inputs], &mut scratch[n * used..][..used]);
            match layout.format {
                Format::F32 => unreachable!("taken as it is"),
                Format::Bf16 => Bf16Words { words, x }.run(s),
                Format::Int8 { offset } => {
                    let scale = int8_scale(Greatest(x).run(s));
                    Int8Words { words, x, scale, offset: 0 }.run(s);
                    let sum: i32 = x.iter().map(|&w| int8_bits(w, scale) as i8 as i32).sum();
                    extras[n] = scale;
                    extras[width + n] = f32::from_bits((-offset * sum) as u32);
                }
            }
        }
        transpose(s, (packed, width), (scratch, used), (count, used));
    }
}

/// Fills panels, one behind the other, whose outputs are columns of the matrix. Row after row is read across all of them:
/// a core fetches ahead what lies side by side.
struct PackColumns<'a> {
    packed: &'a mut [f32],
    matrix: Matrix<'a>,
    /// The first panel's first output.
    first: usize,
    layout: Layout,
}

impl Kernel for PackColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackColumns { packed, matrix, first, layout } = self;
        let (width, panel) = (layout.width, layout.panel(matrix.rows));
        let panels = packed.len() / panel.max(1);
        let columns = |panel: usize| first + panel * width..matrix.cols.min(first + (panel + 1) * width);
        let row = |k: usize, columns: Range<usize>| match k < matrix.rows {
            true => &matrix.data[k * matrix.cols..][columns],
            false => &[],
        };
        match layout.format {
            Format::F32 => {
                for k in 0..matrix.rows {
                    for i in 0..panels {
                        copy_row(s, &mut packed[i * panel + k * width..][..width], row(k, columns(i)), matrix.cols);
                    }
                }
            }
            Format::Bf16 => {
                for k in (0..matrix.rows).step_by(2) {
                    for i in 0..panels {
                        let slots = &mut packed[i * panel + k / 2 * width..][..width];
                        let rows = [row(k, columns(i)), row(k + 1, columns(i))];
                        fetch(s, rows[0], matrix.cols, (AHEAD..AHEAD + 2, rows[0].len()));
                        bf16_words_of(slots, rows[0], rows[1]);
                    }
                }
            }
            Format::Int8 { offset } => {
                for (i, packed) in packed.chunks_exact_mut(panel.max(1)).enumerate() {
                    let row = |k| row(k, columns(i));
                    let count = columns(i).len();
                    let (packed, extras) = packed.split_at_mut(layout.words(matrix.rows) * width);
                    let (scales, starts) = extras.split_at_mut(width);
                    scales[..count].fill(0.0);
                    for k in 0..matrix.rows {
                        (0..count).for_each(|n| scales[n] = scales[n].max(row(k)[n].abs()));
                    }
                    scales[..count].iter_mut().for_each(|scale| *scale = int8_scale(*scale));
                    let mut sums = vec![0; count];
                    for (slots, k) in packed.chunks_exact_mut(width).zip((0..matrix.rows).step_by(4)) {
                        for n in 0..count {
                            let byte = |i: usize| row(k + i).get(n).map_or(0, |&w| int8_bits(w, scales[n]));
                            let bytes = [byte(0), byte(1), byte(2), byte(3)];
                            sums[n] += bytes.iter().map(|&b| b as i8 as i32).sum::<i32>();
                            slots[n] = f32::from_bits(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24);
                        }
                    }
                    (0..count).for_each(|n| starts[n] = f32::from_bits((-offset * sums[n]) as u32));
                }
            }
        }
    }
}

/// Calls `pack(first output, panels)` for all panels of a matrix of `inputs` by `outputs`, for as many as `at_once`
/// together. What a panel holds beyond the matrix's outputs is never read into a result.
fn for_each_panel(
    pool: &Pool,
    data: &mut [f32],
    (inputs, outputs): (usize, usize),
    layout: Layout,
    at_once: usize,
    pack: impl Fn(usize, &mut [f32]) + Sync,
) {
    /// Floats that make a task.
    const GRAIN: usize = 1 << 14;
    let (panels, len) = (outputs.div_ceil(layout.width), layout.panel(inputs));
    let panels_per_task = (GRAIN / len.max(1)).max(at_once);
    let used = inputs.div_ceil(layout.format.group()) * layout.width;
    pool.rows(panels, panels_per_task, [(data, len)], |first, [packed]| {
        // Scratch memory holds what was there before, and the words that fill up must not be NaN.
        for packed in packed.chunks_exact_mut(len.max(1)) {
            packed[used..layout.words(inputs) * layout.width].fill(0.0);
        }
        for (i, packed) in packed.chunks_mut((at_once * len).max(1)).enumerate() {
            pack((first + i * at_once) * layout.width, packed);
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

    const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Int8 { offset: 0 }, Format::Int8 { offset: 128 }];

    /// Integers of which every row and every column has one of magnitude 127: exact in all formats.
    fn matrix(rows: usize, cols: usize) -> Vec<f32> {
        let at = |r: usize, c: usize| match (r + c) % rows.min(cols) {
            0 => 127.0,
            i => ((r * 31 + c * 17 + i) % 200) as f32 - 100.0,
        };
        (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
    }

    #[test]
    fn every_layout_gives_the_same_rows() {
        let (pool, token) = (Pool::new(2).unwrap(), crate::cpu::Isa::best().token().unwrap());
        for (rows, cols, width, align) in [(1, 1, 4, 1), (5, 3, 4, 1), (8, 7, 8, 4), (33, 9, 32, 1), (7, 35, 32, 16)] {
            let data = matrix(rows, cols);
            let matrix = Matrix { data: &data, rows, cols };
            for (transposed, format) in [false, true].into_iter().flat_map(|t| FORMATS.map(|f| (t, f))) {
                let layout = Layout { width, align, format };
                let (inputs, outputs) = sizes(matrix, transposed);
                let panels = Weight::panels(&pool, token, matrix, transposed, layout).unwrap();
                let strided = Weight::strided(matrix, transposed).unwrap();
                for n in 0..outputs {
                    let at = |k| if transposed { data[n * cols + k] } else { data[k * cols + n] };
                    let expected: Vec<f32> = (0..inputs).map(at).collect();
                    assert!(panels.row(n).eq(expected.iter().copied()), "{format:?}");
                    assert!(strided.row(n).eq(expected.iter().copied()));
                }
                let transpose = panels.transpose(&pool, token);
                assert_eq!((transpose.inputs, transpose.outputs), (outputs, inputs));
                let mut other = Weight::panels(&pool, token, matrix, !transposed, layout).unwrap();
                assert_eq!(transpose.data.len(), other.data.len());
                let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(transpose.data), bits(&other.data), "{format:?}");
                other.refresh(&pool, token, &data.iter().map(|x| -x).collect::<Vec<_>>(), !transposed);
                assert!(other.row(0).zip(Weight::strided(matrix, !transposed).unwrap().row(0)).all(|(a, b)| a == -b));
                if format != Format::F32 {
                    continue;
                }
                let range = (outputs / 2 / width * width)..outputs;
                let mut scratch = vec![f32::NAN; layout.len(range.len(), inputs)];
                let transpose =
                    Panels::pack_transpose(&pool, token, &mut scratch, panels.as_panels(layout), range.clone());
                for (k, n) in range.enumerate() {
                    let row = (0..inputs).map(|i| transpose.panel(i / width)[k * width + i % width]);
                    assert!(strided.row(n).eq(row), "row {n} of the transpose");
                }
            }
        }
    }
}
