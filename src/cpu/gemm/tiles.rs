//! Register tiles in a matrix unit: 32 rows by 32 outputs are four tiles of sums, fed by two of each side.
//!
//! A panel is passed over by all rows of a block, [`DEPTH`] words at a time, so that the piece of the panel stays in the
//! first-level cache while the rows come from the second. Between the passes the sums of the panel's outputs wait there
//! too; they leave for `y` while the unit is at the next panel, and what is fused behind the product is done on the way.

use std::ops::Range;

use super::epilogue::{Leave, Scales};
use super::format::Format;
use super::integers::{Bytes, Integers, IntegersOf, Row};
use super::left::Left;
use super::micro::Microkernel;
use super::weight::Panels;
use super::{Epilogue, Mlp};
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{
    Bf16Words, Kernel, Simd, TILE_ROWS, TILE_WORDS, TileUnit, Token, Transpose, bf16_words_of, gelu,
};

/// Words of a tile.
const TILE: usize = TILE_ROWS * TILE_WORDS;
/// Rows and outputs of the sums.
const SIDE: usize = 2 * TILE_ROWS;
/// Words of a pass.
const DEPTH: usize = 256;
/// Words of a block's rows together: three quarters of a megabyte.
const BLOCK: usize = 192 << 10;
/// Steps at the end of a pass in which the upper tiles are finished before the lower ones. Stores that wait for their
/// sums hold up all that comes after them; so there is always a product left to make meanwhile.
const TAIL: usize = 2;
/// What is taken from an integer of a row, as the unit's bytes have signs.
const MIDDLE: f32 = 128.0;

/// Products of bf16, or of int8 where `INT8`, in a matrix unit.
#[derive(Clone, Copy)]
pub struct Tiles<T, const INT8: bool> {
    unit: T,
    token: Token,
}

/// What a call of [`Tiles::multiply`] reads.
struct Operands<'a> {
    /// The upper tiles of rows.
    upper: &'a [f32],
    /// The lower ones; nothing where there are no more rows.
    lower: &'a [f32],
    /// A piece of a panel.
    w: &'a [f32],
}

/// Passes over the words; the only rows of a block read nothing twice.
fn passes(rows: usize, words: usize) -> impl Iterator<Item = Range<usize>> {
    let depth = if rows <= SIDE { words.max(1) } else { DEPTH };
    (0..words).step_by(depth).map(move |first| first..words.min(first + depth))
}

/// Where the words of `pass` of the 16 rows from `row` on lie in a block of `rows`: pass by pass, tile by tile of rows, and
/// of words within it.
fn place(rows: usize, pass: &Range<usize>, row: usize) -> Range<usize> {
    let first = pass.start * rows.next_multiple_of(TILE_ROWS) + row * pass.len();
    first..first + TILE_ROWS * pass.len()
}

impl<T: TileUnit, const INT8: bool> Tiles<T, INT8> {
    /// Converts a row to words; if they are integers, it returns which.
    fn convert(self, words: &mut [f32], row: Row<'_>) -> Option<Integers> {
        words[row.x.len() / Self::FORMAT.group()..].fill(0.0);
        if INT8 {
            let integers = self.token.run(IntegersOf(row));
            self.token.run(Bytes { words, row, integers, offset: MIDDLE });
            Some(integers)
        } else {
            self.token.run(Bf16Words { words, x: row.x });
            None
        }
    }

    /// `leave(sums, rows, col)` is called with sums of the panel of column `col`, `SIDE` for each row of a block, for some of
    /// its rows, until all rows of all panels of `cols` have left.
    #[inline(always)]
    fn columns(
        self,
        rows: usize,
        cols: Range<usize>,
        x: &[f32],
        w: Panels<'_>,
        mut leave: impl FnMut(&[f32], Range<usize>, usize),
    ) {
        let (words, pairs) = (w.words(), rows.div_ceil(SIDE));
        let steps = pairs * words / TILE_WORDS;
        with_scratch(2 * pairs * SIDE * SIDE, |scratch| {
            if words == 0 {
                scratch.fill(0.0);
            }
            let (mut sums, mut complete) = scratch.split_at_mut(pairs * SIDE * SIDE);
            // Rows of the panel before this one that have not left yet.
            let mut leaving = 0..0;
            self.unit.enter(|| {
                for col in cols.clone().step_by(SIDE) {
                    for pass in passes(rows, words) {
                        let piece = w.piece(col / SIDE, &pass).words;
                        let next = w.after(col / SIDE, &pass);
                        let mut next = next.chunks((next.len() / (pairs * pass.len())).max(1) * TILE_WORDS);
                        for (pair, sums) in sums.chunks_exact_mut(SIDE * SIDE).enumerate() {
                            let row = pair * SIDE;
                            let lower = if row + TILE_ROWS < rows { place(rows, &pass, row + TILE_ROWS) } else { 0..0 };
                            let operands = Operands { upper: &x[place(rows, &pass, row)], lower: &x[lower], w: piece };
                            self.multiply(sums, operands, pass.start > 0, || {
                                for line in next.next().unwrap_or_default().chunks(TILE_WORDS) {
                                    self.unit.prefetch(line);
                                }
                                if !leaving.is_empty() {
                                    let part = leaving.start..leaving.end.min(leaving.start + rows.div_ceil(steps));
                                    leaving.start = part.end;
                                    leave(complete, part, col - SIDE);
                                }
                            });
                        }
                    }
                    if !leaving.is_empty() {
                        leave(complete, std::mem::take(&mut leaving), col - SIDE);
                    }
                    std::mem::swap(&mut sums, &mut complete);
                    leaving = 0..rows;
                }
            });
            let last = cols.clone().step_by(SIDE).next_back().unwrap_or(cols.start);
            leave(complete, leaving, last);
        });
    }

    /// `sums (+)= x w` for the words of both, where the first sums are zero if not `add`; `aside` is called after each
    /// step, for what vectors and memory can do while the unit multiplies.
    #[inline(always)]
    fn multiply(self, sums: &mut [f32], x: Operands<'_>, add: bool, mut aside: impl FnMut()) {
        let unit = self.unit;
        macro_rules! dot {
            ($c:literal, $a:literal, $b:literal) => {
                if INT8 { unit.dot_int8::<$c, $a, $b>() } else { unit.dot_bf16::<$c, $a, $b>() }
            };
        }
        let (upper_sums, lower_sums) = sums.split_at_mut(TILE_ROWS * SIDE);
        let (upper, lower) = (x.upper.as_chunks::<TILE>().0, x.lower.as_chunks::<TILE>().0);
        let w = x.w.as_chunks::<{ TILE_WORDS * SIDE }>().0;
        let steps = w.len();
        assert!(upper.len() == steps && (lower.is_empty() || lower.len() == steps));
        macro_rules! upper_step {
            ($step:expr) => {
                unit.load::<4>(&upper[$step], TILE_WORDS);
                unit.load::<6>(&w[$step], SIDE);
                dot!(0, 4, 6);
                unit.load::<7>(&w[$step][TILE_WORDS..], SIDE);
                dot!(1, 4, 7);
            };
        }
        let both = if lower.is_empty() { 0 } else { steps.saturating_sub(TAIL) };
        if add {
            unit.load::<0>(upper_sums, SIDE);
            unit.load::<1>(&upper_sums[TILE_WORDS..], SIDE);
            unit.load::<2>(lower_sums, SIDE);
            unit.load::<3>(&lower_sums[TILE_WORDS..], SIDE);
        } else {
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
        }
        for step in 0..both {
            upper_step!(step);
            unit.load::<5>(&lower[step], TILE_WORDS);
            dot!(2, 5, 6);
            dot!(3, 5, 7);
            aside();
        }
        for step in both..steps {
            upper_step!(step);
            aside();
        }
        unit.store::<0>(upper_sums, SIDE);
        unit.store::<1>(&mut upper_sums[TILE_WORDS..], SIDE);
        if lower.is_empty() {
            return;
        }
        for step in both..steps {
            unit.load::<5>(&lower[step], TILE_WORDS);
            unit.load::<6>(&w[step], SIDE);
            dot!(2, 5, 6);
            unit.load::<7>(&w[step][TILE_WORDS..], SIDE);
            dot!(3, 5, 7);
        }
        unit.store::<2>(lower_sums, SIDE);
        unit.store::<3>(&mut lower_sums[TILE_WORDS..], SIDE);
    }
}

impl<T: TileUnit, const INT8: bool> Microkernel for Tiles<T, INT8> {
    const FORMAT: Format = if INT8 { Format::Int8 } else { Format::Bf16 };
    const WIDTH: usize = SIDE;
    const ROWS: usize = SIDE;
    const GRAIN: usize = SIDE;
    // Integers need the extremes of a row before the first is packed.
    const ROWS_TWICE: usize = if INT8 { 0 } else { 4 * SIDE };
    const ALIGN: usize = TILE_WORDS;

    fn new() -> Option<Self> {
        Some(Tiles { unit: T::new()?, token: crate::cpu::Isa::best_vectors() })
    }

    fn token(self) -> Token {
        self.token
    }

    fn block_rows(words: usize) -> usize {
        (BLOCK / words.max(1)).clamp(4 * SIDE, 16 * SIDE)
    }

    fn packed_len(rows: usize, words: usize) -> usize {
        rows.next_multiple_of(TILE_ROWS) * words + if INT8 { 2 * rows } else { 0 }
    }

    fn pack(self, packed: &mut [f32], x: Left<'_>, first: usize, rows: usize, w: Panels<'_>) {
        let (inputs, words) = (w.inputs, w.words());
        let (packed, of_rows) = packed.split_at_mut(rows.next_multiple_of(TILE_ROWS) * words);
        match x {
            Left::Rows { data, stride } => with_scratch(words, |converted| {
                for r in 0..rows {
                    let row = Row { x: &data[(first + r) * stride..][..inputs], balance: w.balance };
                    if let Some(integers) = self.convert(converted, row) {
                        (of_rows[r], of_rows[rows + r]) = (integers.scale, integers.zero - MIDDLE);
                    }
                    let (tile, row) = (r / TILE_ROWS * TILE_ROWS, r % TILE_ROWS * TILE_WORDS);
                    for pass in passes(rows, words) {
                        let tiles = packed[place(rows, &pass, tile)].as_chunks_mut::<TILE>().0;
                        let parts = converted[pass].as_chunks::<TILE_WORDS>().0;
                        for (tile, part) in tiles.iter_mut().zip(parts) {
                            tile[row..row + TILE_WORDS].copy_from_slice(part);
                        }
                    }
                }
            }),
            Left::Columns { .. } if INT8 => unreachable!("integer weights have no gradient"),
            Left::Columns { data, stride } => with_scratch(TILE_WORDS * rows, |turned| {
                let column = |k: usize| if k < inputs { &data[k * stride + first..][..rows] } else { &[] };
                for (pass, word) in passes(rows, words)
                    .flat_map(|pass| pass.clone().step_by(TILE_WORDS).map(move |word| (pass.clone(), word)))
                {
                    self.token.run(WordsOfColumns { turned: &mut *turned, rows, columns: |k| column(2 * word + k) });
                    for tile in (0..rows).step_by(TILE_ROWS) {
                        let packed = &mut packed[place(rows, &pass, tile)];
                        let y = (&mut packed[(word - pass.start) / TILE_WORDS * TILE..][..TILE], TILE_WORDS);
                        let size = (TILE_WORDS, TILE_ROWS.min(rows - tile));
                        self.token.run(Transpose { y, x: (&turned[tile..], rows), size });
                    }
                }
            }),
        }
    }

    fn takes_plain_row(_inputs: usize) -> bool {
        false
    }

    fn block(self, mut tile: Tile<'_>, x: &[f32], w: Panels<'_>, epilogue: Epilogue<'_>) {
        let (count, cols) = (tile.rows().len(), tile.cols());
        let (x, of_rows) = x.split_at(count.next_multiple_of(TILE_ROWS) * w.words());
        self.columns(count, cols.clone(), x, w, |sums, rows, col| {
            let cols = col..cols.end.min(col + SIDE);
            let scales = INT8.then(|| {
                let (scales, zeros) = of_rows.split_at(count);
                Scales {
                    bits: true,
                    rows: &scales[rows.start..],
                    zeros: &zeros[rows.start..],
                    outputs: w.extras(col / SIDE),
                }
            });
            self.token.run(Leave {
                tile: &mut tile,
                sums: &sums[rows.start * SIDE..rows.end * SIDE],
                rows,
                cols,
                outputs: w.outputs,
                width: SIDE,
                scales,
                add: epilogue.accumulates(),
                epilogue,
            });
        });
    }

    /// What the first product gives is packed for the second as it leaves.
    fn block_twice(self, tile: Tile<'_>, x: &[f32], mlp: Mlp<'_, Panels<'_>>) {
        let (rows, outputs, words) = (tile.rows().len(), mlp.first.outputs, mlp.second.words());
        with_scratch(Self::packed_len(rows, words), |inner| {
            self.columns(rows, 0..outputs, x, mlp.first, |sums, leaving, col| {
                let (bias, word) = (&mlp.bias[col..outputs.min(col + SIDE)], col / Self::FORMAT.group());
                self.token.run(LeaveGelu { packed: &mut *inner, rows, words, leaving, word, sums, bias });
            });
            self.block(tile, inner, mlp.second, mlp.epilogue);
        });
    }
}

/// Sixteen words for each of `rows` rows that lie side by side in their columns, word by word.
struct WordsOfColumns<'a, F> {
    turned: &'a mut [f32],
    rows: usize,
    /// The column of an input, counted from the first word's; empty beyond the last.
    columns: F,
}

impl<'x, F: Fn(usize) -> &'x [f32]> Kernel for WordsOfColumns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for word in 0..TILE_WORDS {
            let turned = &mut self.turned[word * self.rows..][..self.rows];
            match (self.columns)(2 * word) {
                [] => turned.fill(0.0),
                lower => bf16_words_of(turned, lower, (self.columns)(2 * word + 1)),
            }
        }
    }
}

/// `packed = gelu_new(sums + bias)` as words of two bf16 from `word` on, for rows `leaving` of a block of `rows`.
struct LeaveGelu<'a> {
    packed: &'a mut [f32],
    rows: usize,
    /// Words of a row.
    words: usize,
    leaving: Range<usize>,
    word: usize,
    sums: &'a [f32],
    bias: &'a [f32],
}

impl Kernel for LeaveGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LeaveGelu { packed, rows, words, leaving, word, sums, bias } = self;
        let Some(pass) = passes(rows, words).find(|pass| pass.contains(&word)) else { return };
        let sums = sums.as_chunks::<SIDE>().0;
        for r in leaving {
            let mut values = [0.0; SIDE];
            for i in (0..bias.len()).step_by(S::LANES) {
                s.store(&mut values[i..], gelu(s, s.add(s.load(&sums[r][i..]), s.load(&bias[i..]))));
            }
            let tiles = &mut packed[place(rows, &pass, r / TILE_ROWS * TILE_ROWS)];
            let start = (word - pass.start) / TILE_WORDS * TILE + r % TILE_ROWS * TILE_WORDS;
            Bf16Words { words: &mut tiles[start..start + TILE_WORDS], x: &values }.run(s);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::backend::Matrix;
    use crate::cpu::gemm::integers::tests::even_weights;
    use crate::cpu::gemm::product::Product;
    use crate::cpu::gemm::{Epilogue, Gemm};
    use crate::cpu::parallel::Pool;
    use crate::rng::{Rng, Stream};

    /// The unit in software, as Intel's manual (volume 2, TDPBF16PS and TDPBSSD) describes it.
    #[derive(Clone, Copy)]
    struct Software;

    thread_local! {
        static TILES: RefCell<Option<[[f32; TILE]; 8]>> = const { RefCell::new(None) };
    }

    impl Software {
        fn on<R>(self, work: impl FnOnce(&mut [[f32; TILE]; 8]) -> R) -> R {
            TILES.with_borrow_mut(|tiles| work(tiles.as_mut().expect("inside `enter`")))
        }

        fn dot<const C: u8, const A: u8, const B: u8>(self, dot: impl Fn(f32, u32, u32) -> f32) {
            self.on(|tiles| {
                for (m, n) in (0..TILE_ROWS).flat_map(|m| (0..TILE_WORDS).map(move |n| (m, n))) {
                    for k in 0..TILE_WORDS {
                        let a = tiles[A as usize][m * TILE_WORDS + k].to_bits();
                        let b = tiles[B as usize][k * TILE_WORDS + n].to_bits();
                        let c = &mut tiles[C as usize][m * TILE_WORDS + n];
                        *c = dot(*c, a, b);
                    }
                }
            });
        }
    }

    impl TileUnit for Software {
        fn new() -> Option<Self> {
            Some(Software)
        }
        fn enter(self, work: impl FnOnce()) {
            TILES.set(Some([[f32::NAN; TILE]; 8]));
            work();
            TILES.set(None);
        }
        fn zero<const T: u8>(self) {
            self.on(|tiles| tiles[T as usize].fill(0.0));
        }
        fn load<const T: u8>(self, rows: &[f32], stride: usize) {
            self.on(|tiles| {
                for (r, row) in tiles[T as usize].chunks_mut(TILE_WORDS).enumerate() {
                    row.copy_from_slice(&rows[r * stride..][..TILE_WORDS]);
                }
            });
        }
        fn store<const T: u8>(self, rows: &mut [f32], stride: usize) {
            self.on(|tiles| {
                for (r, row) in tiles[T as usize].chunks(TILE_WORDS).enumerate() {
                    rows[r * stride..][..TILE_WORDS].copy_from_slice(row);
                }
            });
        }
        fn prefetch(self, _line: &[f32]) {}
        fn dot_bf16<const C: u8, const A: u8, const B: u8>(self) {
            let half = |bits: u32, i: u32| f32::from_bits(bits >> (16 * i) << 16);
            self.dot::<C, A, B>(|c, a, b| c + half(a, 0) * half(b, 0) + half(a, 1) * half(b, 1));
        }
        fn dot_int8<const C: u8, const A: u8, const B: u8>(self) {
            let byte = |bits: u32, i: u32| i32::from((bits >> (8 * i)) as i8);
            self.dot::<C, A, B>(|c, a, b| {
                let sum: i32 = (0..4).map(|i| byte(a, i) * byte(b, i)).sum();
                f32::from_bits((c.to_bits() as i32 + sum) as u32)
            });
        }
    }

    /// Integers that are exact in both formats, as each row has all 256 between its extremes.
    fn activations(seed: u64, rows: usize, inputs: usize) -> Vec<f32> {
        let rng = Rng::new(seed, Stream::Init, 0);
        let at = |i: usize| match i % inputs {
            0 if inputs == 1 => 255.0,
            0 => 127.0,
            k if k + 1 == inputs => -128.0,
            _ => (rng.words(i as u32)[0] % 255) as f32 - 127.0,
        };
        (0..rows * inputs).map(at).collect()
    }

    #[test]
    fn products_are_exact_at_every_size() {
        let products = [
            Product::<Tiles<Software, false>>::boxed("software-bf16-tiles"),
            Product::<Tiles<Software, true>>::boxed("software-int8-tiles"),
        ];
        let products: Vec<Box<dyn Gemm>> = products.into_iter().flatten().collect();
        let pools = [1, 3].map(|threads| Pool::new(threads).unwrap());
        for (rows, inputs, outputs) in [
            (1, 1, 1),
            (1, 70, 33),
            (15, 64, 32),
            (16, 63, 31),
            (17, 65, 100),
            (33, 32, 64),
            (70, 130, 40),
            (300, 5, 7),
            (70, 1030, 40),
        ] {
            let (x, w) = (activations(1, rows, inputs), even_weights(inputs, outputs));
            let at = |r: usize, n: usize| (0..inputs).map(|k| x[r * inputs + k] * w[k * outputs + n]).sum();
            let expected: Vec<f32> = (0..rows * outputs).map(|i| at(i / outputs, i % outputs)).collect();
            for (gemm, pool) in products.iter().flat_map(|gemm| pools.each_ref().map(|pool| (gemm, pool))) {
                let what = format!("{} {rows}x{inputs}x{outputs}", gemm.name());
                let matrix = Matrix { data: &w, rows: inputs, cols: outputs };
                let weight = gemm.prepare(pool, matrix, false).unwrap();
                let mut y = vec![f32::NAN; rows * outputs];
                gemm.multiply(pool, &mut y, &x, &weight, rows, Epilogue::Store);
                assert_eq!(y, expected, "{what}");
                gemm.multiply(pool, &mut y, &x, &weight, rows, Epilogue::Accumulate);
                assert!(y.iter().zip(&expected).all(|(y, e)| *y == 2.0 * e), "{what}, accumulated");
            }
            let (gemm, pool) = (&products[0], &pools[1]);
            let matrix = Matrix { data: &w, rows: inputs, cols: outputs };
            let weight = gemm.prepare(pool, matrix, false).unwrap();
            let dy = activations(3, rows, outputs);
            let mut dx = vec![f32::NAN; rows * inputs];
            gemm.multiply_by_transpose(pool, &mut dx, &dy, &weight, rows, false);
            let at = |r: usize, k: usize| (0..outputs).map(|n| dy[r * outputs + n] * w[k * outputs + n]).sum::<f32>();
            assert!((0..dx.len()).all(|i| dx[i] == at(i / inputs, i % inputs)));
            let mut dw = vec![1.0; inputs * outputs];
            gemm.add_outer(pool, &mut dw, &x, &dy, rows, (inputs, outputs));
            let at = |k: usize, n: usize| (0..rows).map(|r| x[r * inputs + k] * dy[r * outputs + n]).sum::<f32>();
            assert!((0..dw.len()).all(|i| dw[i] == 1.0 + at(i / outputs, i % outputs)));
        }
    }

    #[test]
    fn two_products_in_one_are_the_two() {
        let gemm = Product::<Tiles<Software, false>>::boxed("software-bf16-tiles").unwrap();
        let normal = |seed, len: usize| {
            let mut values = vec![0.0; len];
            Rng::new(seed, Stream::Init, 0).fill_normal(&mut values);
            values
        };
        for (threads, rows, inputs, inner, outputs) in
            [(1, 64, 40, 300, 33), (3, 200, 32, 64, 70), (2, 413, 5, 31, 1), (2, 150, 600, 1100, 40)]
        {
            let pool = Pool::new(threads).unwrap();
            let x = normal(1, rows * inputs);
            let (bias, bias_2, residual) = (normal(2, inner), normal(3, outputs), normal(4, rows * outputs));
            let weight = |seed, rows, cols| {
                gemm.prepare(&pool, Matrix { data: &normal(seed, rows * cols), rows, cols }, false).unwrap()
            };
            let (first, second) = (&weight(5, inputs, inner), &weight(6, inner, outputs));
            let epilogue = Epilogue::BiasResidual(&bias_2, &residual);
            let (mut between, mut expected) = (vec![0.0; rows * inner], vec![0.0; rows * outputs]);
            gemm.multiply(&pool, &mut between, &x, first, rows, Epilogue::BiasGelu(&bias));
            gemm.multiply(&pool, &mut expected, &between, second, rows, epilogue);
            let mut y = vec![f32::NAN; rows * outputs];
            assert!(gemm.multiply_twice(&pool, &mut y, &x, Mlp { first, bias: &bias, second, epilogue }, rows));
            assert_eq!(y, expected, "{rows} rows on {threads} threads");
        }
    }
}
