//! Register tiles in a matrix unit: 32 rows by 32 outputs are four tiles of sums, fed by two of each side.

use std::ops::Range;

use super::format::{Bf16Words, Format, Greatest, Int8Words, bf16_word, int8_scale};
use super::left::Left;
use super::micro::{Microkernel, Piece};
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{Kernel, Simd, TILE_ROWS, TILE_WORDS, TileUnit, Token};

/// Words of a tile.
const TILE: usize = TILE_ROWS * TILE_WORDS;
/// Rows and outputs of the sums.
const SIDE: usize = 2 * TILE_ROWS;

/// Products of bf16, or of int8 where `INT8`, in a matrix unit.
#[derive(Clone, Copy)]
pub struct Tiles<T, const INT8: bool> {
    unit: T,
    token: Token,
}

impl<T: TileUnit, const INT8: bool> Tiles<T, INT8> {
    /// Converts a row to words; what it returns is its scale.
    fn convert(self, words: &mut [f32], x: &[f32]) -> f32 {
        words[x.len() / Self::FORMAT.group()..].fill(0.0);
        if INT8 {
            let scale = int8_scale(self.token.run(Greatest(x)));
            self.token.run(Int8Words { words, x, scale, offset: 0 });
            scale
        } else {
            self.token.run(Bf16Words { words, x });
            1.0
        }
    }

    /// `sums = x w` for the words of both.
    fn multiply(self, sums: &mut [f32; SIDE * SIDE], x: &[f32], w: &[f32], len: usize) {
        let unit = self.unit;
        macro_rules! dot {
            ($c:literal, $a:literal, $b:literal) => {
                if INT8 { unit.dot_int8::<$c, $a, $b>() } else { unit.dot_bf16::<$c, $a, $b>() }
            };
        }
        let steps = w.len() / (TILE_WORDS * SIDE);
        let (lower, upper) = x.split_at(steps * TILE);
        unit.zero::<0>();
        unit.zero::<1>();
        unit.zero::<2>();
        unit.zero::<3>();
        for step in 0..steps {
            let w = &w[step * TILE_WORDS * SIDE..][..TILE_WORDS * SIDE];
            unit.load::<4>(&lower[step * TILE..][..TILE], TILE_WORDS);
            unit.load::<6>(w, SIDE);
            unit.load::<7>(&w[TILE_WORDS..], SIDE);
            dot!(0, 4, 6);
            dot!(1, 4, 7);
            if len > TILE_ROWS {
                unit.load::<5>(&upper[step * TILE..][..TILE], TILE_WORDS);
                dot!(2, 5, 6);
                dot!(3, 5, 7);
            }
        }
        unit.store::<0>(sums, SIDE);
        unit.store::<1>(&mut sums[TILE_WORDS..], SIDE);
        if len > TILE_ROWS {
            let sums = &mut sums[TILE_ROWS * SIDE..];
            unit.store::<2>(sums, SIDE);
            unit.store::<3>(&mut sums[TILE_WORDS..], SIDE);
        }
    }
}

impl<T: TileUnit, const INT8: bool> Microkernel for Tiles<T, INT8> {
    const FORMAT: Format = if INT8 { Format::Int8 { offset: 0 } } else { Format::Bf16 };
    const WIDTH: usize = SIDE;
    const ROWS: usize = SIDE;
    // Sums that leave the unit take as long as many products.
    const DEPTH: usize = usize::MAX;
    const ALIGN: usize = TILE_WORDS;

    fn new() -> Option<Self> {
        Some(Tiles { unit: T::new()?, token: crate::cpu::Isa::best_vectors() })
    }

    fn token(self) -> Token {
        self.token
    }

    fn enter(self, work: impl FnOnce()) {
        self.unit.enter(work);
    }

    fn packed_len(rows: usize, words: usize) -> usize {
        rows.next_multiple_of(TILE_ROWS) * words + if INT8 { SIDE } else { 0 }
    }

    /// Tile by tile of rows, and of words within it.
    fn pack(self, packed: &mut [f32], x: Left<'_>, rows: Range<usize>, inputs: Range<usize>) {
        let words = inputs.len().div_ceil(Self::FORMAT.group()).next_multiple_of(TILE_WORDS);
        let (packed, scales) = packed.split_at_mut(rows.len().next_multiple_of(TILE_ROWS) * words);
        let place = |r: usize, word: usize| {
            (r / TILE_ROWS * words / TILE_WORDS + word / TILE_WORDS) * TILE + r % TILE_ROWS * TILE_WORDS
        };
        match x {
            Left::Rows { data, stride } => with_scratch(words, |converted| {
                for (r, row) in rows.enumerate() {
                    let scale = self.convert(converted, &data[row * stride..][inputs.clone()]);
                    if INT8 {
                        scales[r] = scale;
                    }
                    for word in (0..words).step_by(TILE_WORDS) {
                        let part = &converted[word..word + TILE_WORDS];
                        packed[place(r, word)..][..TILE_WORDS].copy_from_slice(part);
                    }
                }
            }),
            Left::Columns { .. } if INT8 => unreachable!("integer weights have no gradient"),
            Left::Columns { data, stride } => {
                let column = |k: usize| if inputs.contains(&k) { &data[k * stride..][rows.clone()] } else { &[] };
                for word in 0..words {
                    let (lower, upper) = (column(inputs.start + 2 * word), column(inputs.start + 2 * word + 1));
                    let at = |column: &[f32], r| column.get(r).copied().unwrap_or(0.0);
                    for r in 0..rows.len() {
                        packed[place(r, word) + word % TILE_WORDS] = bf16_word(at(lower, r), at(upper, r));
                    }
                }
            }
        }
    }

    fn takes_plain_row(_inputs: usize) -> bool {
        false
    }

    fn tile(self, y: &mut Tile<'_>, (row, len, col): (usize, usize, usize), x: &[f32], w: Piece<'_>, add: bool) {
        let mut sums = [0.0; SIDE * SIDE];
        let (x, row_scales) = x.split_at(len.next_multiple_of(TILE_ROWS) * w.words.len() / SIDE);
        self.multiply(&mut sums, x, w.words, len);
        let cols = col..y.cols().end.min(col + SIDE);
        for r in 0..len {
            let y = y.part(row + r, cols.clone());
            let sums = &sums[r * SIDE..][..cols.len()];
            let scales = INT8.then(|| (row_scales[r], &w.extras[..cols.len()]));
            self.token.run(Leave { y, sums, scales, add });
        }
    }
}

/// `y (+)= sums`, integers with their scales.
struct Leave<'a> {
    y: &'a mut [f32],
    sums: &'a [f32],
    scales: Option<(f32, &'a [f32])>,
    add: bool,
}

impl Kernel for Leave<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let Leave { y, sums, scales, add } = self;
        let (y, sums) = (&mut y[..sums.len()], sums);
        for n in 0..sums.len() {
            let value = match scales {
                Some((row, outputs)) => sums[n].to_bits() as i32 as f32 * (row * outputs[n]),
                None => sums[n],
            };
            y[n] = if add { y[n] + value } else { value };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::backend::Matrix;
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

    /// Integers, of which the first in each row and column is 127: exact in both formats, and so are their sums.
    fn integers(seed: u64, rows: usize, cols: usize) -> Vec<f32> {
        let at = |i: usize| match (i / cols, i % cols) {
            (0, _) | (_, 0) => 127.0,
            _ => (Rng::new(seed, Stream::Init, 0).words(i as u32)[0] % 255) as f32 - 127.0,
        };
        (0..rows * cols).map(at).collect()
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
        ] {
            let (x, w) = (integers(1, rows, inputs), integers(2, inputs, outputs));
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
            let dy = integers(3, rows, outputs);
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
}
