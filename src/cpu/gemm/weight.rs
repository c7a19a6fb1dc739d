//! A weight as the matrix products want it.

use std::iter::repeat;
use std::ops::Range;
use std::sync::OnceLock;

use super::codes::PackCodes;
use super::format::{Format, element, scale};
use super::integers::{Row, WeightScale, WeightWords, balance, weight_bits, weight_scale, weight_sum, weight_word};
use super::micro::Piece;
use crate::backend::Matrix;
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::{Pool, with_scratch};
use crate::cpu::simd::{Bf16Words, Kernel, Simd, Token, Transpose, bf16_words_of, copy_row, fetch, transpose};
use crate::error::Result;

/// A matrix of parameters `W (in, out)`, laid out for one implementation of the matrix product.
pub struct Weight {
    data: Buffer<f32>,
    order: Order,
    /// `in`.
    pub(super) inputs: usize,
    /// `out`.
    pub(super) outputs: usize,
    /// Of integers, what comes in is multiplied with: [`balance`]; else nothing.
    balance: Vec<f32>,
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
        let words = self.words(inputs);
        (words + self.format.extras(words)) * self.width
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
        let data = Buffer::from_slice(matrix.data)?;
        Ok(Weight { data, order, inputs, outputs, balance: Vec::new(), transpose: OnceLock::new() })
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
        let data = Buffer::try_zeroed(layout.len(inputs, outputs))?;
        let (order, balance) = (Order::Panels(layout), Vec::new());
        let mut weight = Weight { data, order, inputs, outputs, balance, transpose: OnceLock::new() };
        weight.fill(pool, token, matrix, transposed, layout);
        Ok(weight)
    }

    fn fill(&mut self, pool: &Pool, token: Token, matrix: Matrix<'_>, transposed: bool, layout: Layout) {
        if layout.format.is_integer() {
            self.balance = balance(token, matrix, transposed);
        }
        Panels::pack(pool, token, &mut self.data, (matrix, transposed), &self.balance, layout);
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
                self.fill(pool, token, matrix, transposed, layout);
                if let Some(transpose) = self.transpose.get_mut() {
                    Panels::pack(pool, token, transpose, (matrix, !transposed), &[], layout);
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
        // Where its words are, how far apart, how many elements each has, and what these are multiplied with.
        let (start, stride, format, extras) = match self.order {
            Order::Strided { inputs, outputs } => (n * outputs, inputs, Format::F32, &[][..]),
            Order::Panels(layout) => {
                let Layout { width, format, .. } = layout;
                // Of floats there are none.
                let extras = self.as_panels(layout).extras(n / width).get(n % width..).unwrap_or_default();
                (n / width * layout.panel(self.inputs) + n % width, width, format, extras)
            }
        };
        let words = self.data.get(start..).unwrap_or_default().iter().step_by(stride);
        let elements = words.enumerate().flat_map(move |(at, word)| {
            let scale = scale(format, extras, stride, at);
            (0..format.group()).map(move |i| scale * element(format, *word, i))
        });
        let factors = self.balance.iter().copied().chain(repeat(1.0));
        elements.zip(factors).map(|(w, factor)| w * factor).take(self.inputs)
    }

    /// The panels, which are laid out like this.
    pub(super) fn as_panels(&self, layout: Layout) -> Panels<'_> {
        assert_eq!(self.order, Order::Panels(layout), "a weight prepared for another matrix product");
        Panels { data: &self.data, layout, inputs: self.inputs, outputs: self.outputs, balance: &self.balance }
    }

    /// Panels of `Wᵀ`, which are made the first time and kept.
    ///
    /// # Panics
    /// There is no memory for them.
    pub(super) fn transpose(&self, pool: &Pool, token: Token) -> Panels<'_> {
        let Order::Panels(layout) = self.order else { panic!("a weight prepared for another matrix product") };
        assert!(!layout.format.is_integer(), "integer weights have no gradient");
        let data = self.transpose.get_or_init(|| {
            let values: Vec<f32> = (0..self.outputs).flat_map(|n| self.row(n)).collect();
            let matrix = Matrix { data: &values, rows: self.outputs, cols: self.inputs };
            let mut data = Buffer::zeroed(layout.len(self.outputs, self.inputs));
            Panels::pack(pool, token, &mut data, (matrix, false), &[], layout);
            data
        });
        Panels { data, layout, inputs: self.outputs, outputs: self.inputs, balance: &[] }
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
    /// What comes in is multiplied with, for integers.
    pub balance: &'a [f32],
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

    /// What lies behind words `words` of panel `index`, as much again at most.
    pub fn after(self, index: usize, words: &Range<usize>) -> &'a [f32] {
        let width = self.layout.width;
        let start = index * self.layout.panel(self.inputs) + words.end * width;
        self.data.get(start..self.data.len().min(start + words.len() * width)).unwrap_or_default()
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
        Piece { words: &all[words.start * width..words.end * width], extras, later: &[] }
    }

    /// Packs a matrix, stored `(out, in)` if `transposed`, divided by `balance` if it becomes integers; `data` is as long as
    /// the panels are.
    pub fn pack(
        pool: &Pool,
        token: Token,
        data: &'a mut [f32],
        (matrix, transposed): (Matrix<'_>, bool),
        balance: &'a [f32],
        layout: Layout,
    ) -> Self {
        let (inputs, outputs) = sizes(matrix, transposed);
        if layout.format == Format::Int4 {
            let (width, words) = (layout.width, layout.words(inputs));
            for_each_panel(pool, data, (inputs, outputs), layout, 1, |first, packed| {
                token.run(PackCodes { packed, matrix, transposed, balance, first, width, words });
            });
        } else if transposed {
            for_each_panel(pool, data, (inputs, outputs), layout, 1, |first, packed| {
                let count = layout.width.min(outputs - first);
                let rows = &matrix.data[first * inputs..][..count * inputs];
                let narrow = if layout.format == Format::F32 { 0 } else { inputs.div_ceil(layout.format.group()) };
                with_scratch(count * narrow, |scratch| {
                    token.run(PackRows { packed, scratch, rows, inputs, balance, layout });
                });
            });
        } else {
            for_each_panel(pool, data, (inputs, outputs), layout, SIDE_BY_SIDE, |first, packed| {
                token.run(PackColumns { packed, matrix, first, balance, layout });
            });
        }
        Panels { data, layout, inputs, outputs, balance }
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
        Panels { data, layout, inputs, outputs, balance: &[] }
    }
}

/// Fills a panel whose outputs are rows of the matrix.
struct PackRows<'a> {
    packed: &'a mut [f32],
    /// The rows' words, unless they are those of the matrix.
    scratch: &'a mut [f32],
    rows: &'a [f32],
    inputs: usize,
    balance: &'a [f32],
    layout: Layout,
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { packed, scratch, rows, inputs, balance, layout } = self;
        let (width, words) = (layout.width, layout.words(inputs));
        let (packed, extras) = packed.split_at_mut(words * width);
        let (count, used) = (rows.len() / inputs.max(1), inputs.div_ceil(layout.format.group()));
        if layout.format == Format::F32 {
            return transpose(s, (packed, width), (rows, inputs), (count, used));
        }
        for n in 0..count {
            let (x, words) = (&rows[n * inputs..][..inputs], &mut scratch[n * used..][..used]);
            match layout.format {
                Format::F32 | Format::Int4 => unreachable!("packed otherwise"),
                Format::Bf16 => Bf16Words { words, x }.run(s),
                Format::Int8 => {
                    let row = Row { x, balance };
                    let scale = WeightScale(row).run(s);
                    WeightWords { words, row, scale }.run(s);
                    extras[n] = scale;
                    extras[width + n] = words.iter().map(|&word| weight_sum(word)).sum();
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
    balance: &'a [f32],
    layout: Layout,
}

impl Kernel for PackColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackColumns { packed, matrix, first, balance, layout } = self;
        let (width, panel) = (layout.width, layout.panel(matrix.rows));
        let panels = packed.len() / panel.max(1);
        let columns = |panel: usize| first + panel * width..matrix.cols.min(first + (panel + 1) * width);
        let row = |k: usize, columns: Range<usize>| match k < matrix.rows {
            true => &matrix.data[k * matrix.cols..][columns],
            false => &[],
        };
        match layout.format {
            Format::Int4 => unreachable!("packed otherwise"),
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
            Format::Int8 => {
                for (i, packed) in packed.chunks_exact_mut(panel.max(1)).enumerate() {
                    let row = |k| row(k, columns(i));
                    let count = columns(i).len();
                    let (packed, extras) = packed.split_at_mut(layout.words(matrix.rows) * width);
                    let (scales, totals) = extras.split_at_mut(width);
                    scales[..count].fill(0.0);
                    totals[..count].fill(0.0);
                    for k in 0..matrix.rows {
                        (0..count).for_each(|n| scales[n] = scales[n].max((row(k)[n] / balance[k]).abs()));
                    }
                    scales[..count].iter_mut().for_each(|scale| *scale = weight_scale(*scale));
                    for (slots, k) in packed.chunks_exact_mut(width).zip((0..matrix.rows).step_by(4)) {
                        for n in 0..count {
                            let bits = |k: usize| row(k).get(n).map_or(0, |w| weight_bits(w / balance[k], scales[n]));
                            slots[n] = weight_word([bits(k), bits(k + 1), bits(k + 2), bits(k + 3)]);
                            totals[n] += weight_sum(slots[n]);
                        }
                    }
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
    use crate::cpu::gemm::integers::tests::even_weights;

    const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Int8, Format::Int4];

    /// Integers that stay as they are in `format`: of every row and every column one has the magnitude 127, or none of the
    /// inputs has to be balanced.
    fn values(format: Format, (rows, cols): (usize, usize), transposed: bool) -> Vec<f32> {
        match format {
            Format::Int8 | Format::Int4 if transposed => {
                let w = even_weights(cols, rows);
                return (0..w.len()).map(|i| w[i % cols * rows + i / cols]).collect();
            }
            Format::Int8 | Format::Int4 => return even_weights(rows, cols),
            Format::F32 | Format::Bf16 => {}
        }
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
            for (transposed, format) in [false, true].into_iter().flat_map(|t| FORMATS.map(|f| (t, f))) {
                let data = values(format, (rows, cols), transposed);
                let matrix = Matrix { data: &data, rows, cols };
                let layout = Layout { width, align, format };
                let (inputs, outputs) = sizes(matrix, transposed);
                let panels = Weight::panels(&pool, token, matrix, transposed, layout).unwrap();
                let strided = Weight::strided(matrix, transposed).unwrap();
                let slack = match format {
                    Format::F32 | Format::Bf16 => 0.0,
                    // Roundings of the scale and of what balances: an integer that is off by one is off by 1/127 at least.
                    Format::Int8 => 1e-3,
                    // Half of the widest step between codes.
                    Format::Int4 => 13.6,
                };
                let near = |(a, b): (f32, f32)| (a - b).abs() <= slack;
                for n in 0..outputs {
                    let at = |k| if transposed { data[n * cols + k] } else { data[k * cols + n] };
                    let expected: Vec<f32> = (0..inputs).map(at).collect();
                    assert_eq!(panels.row(n).count(), inputs);
                    assert!(panels.row(n).zip(expected.iter().copied()).all(near), "{format:?}");
                    assert!(strided.row(n).eq(expected.iter().copied()));
                }
                let mut other = Weight::panels(&pool, token, matrix, !transposed, layout).unwrap();
                if !format.is_integer() {
                    let transpose = panels.transpose(&pool, token);
                    assert_eq!((transpose.inputs, transpose.outputs), (outputs, inputs));
                    assert_eq!(transpose.data.len(), other.data.len());
                    let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(transpose.data), bits(&other.data), "{format:?}");
                }
                let opposite: Vec<f32> = values(format, (rows, cols), !transposed).iter().map(|x| -x).collect();
                other.refresh(&pool, token, &opposite, !transposed);
                let strided_other = Weight::strided(Matrix { data: &opposite, rows, cols }, !transposed).unwrap();
                assert!(other.row(0).zip(strided_other.row(0)).all(near), "{format:?}");
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
