//! Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A draw is a pure function of `(seed, stream, row, step)`: no state is carried, so the same row of a request gets the
//! same numbers whatever batch it runs in, on the CPU and on a GPU, and a resumed run needs no saved generator.

/// What the numbers are for: draws for different purposes never share a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Choosing the next token.
    Token = 0,
    /// Noise ε of the latents.
    Latent = 1,
    /// Initial weights.
    Init = 2,
    /// The order of training rows.
    Shuffle = 3,
    /// Keys of dropout masks.
    Dropout = 4,
    /// Tokens that the decoder does not see in training.
    WordDropout = 5,
    /// Which rows stand for all.
    Subset = 16,
}

/// Draws for one row of one purpose.
///
/// ```
/// use della::rng::{Rng, Stream};
/// let rng = Rng::new(7, Stream::Token, 3);
/// assert_eq!(rng.uniform(5), Rng::new(7, Stream::Token, 3).uniform(5));
/// assert_ne!(rng.uniform(5), rng.uniform(6));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    key: [u32; 2],
    stream: u32,
    row: u64,
}

impl Rng {
    /// The generator of `row` under `seed`.
    pub fn new(seed: u64, stream: Stream, row: u64) -> Self {
        Rng { key: [seed as u32, (seed >> 32) as u32], stream: stream as u32, row }
    }

    /// Four words at counter `step`; the stream and the row have words of the counter to themselves.
    pub fn words(&self, step: u32) -> [u32; 4] {
        philox4x32(self.key, [step, self.stream, self.row as u32, (self.row >> 32) as u32])
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn uniform(&self, step: u32) -> f64 {
        let [a, b, ..] = self.words(step);
        unit(a, b)
    }

    /// Two independent standard normal numbers (Box–Muller).
    pub fn normal_pair(&self, step: u32) -> [f64; 2] {
        let [a, b, c, d] = self.words(step);
        let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(c, d)).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Fills `out` with standard normal numbers, starting at counter 0.
    pub fn fill_normal(&self, out: &mut [f32]) {
        for (step, pair) in out.chunks_mut(2).enumerate() {
            for (x, n) in pair.iter_mut().zip(self.normal_pair(step as u32)) {
                *x = n as f32;
            }
        }
    }
}

/// A dropout mask: a factor 0, with the probability `rate`, or `1 / (1 − rate)` for each place (row, column). It is a
/// function of the key and the place, so that a backward pass, a recomputation and a resumed run meet the same mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    key: [u32; 2],
    /// A word below it is a zero.
    threshold: u32,
    factor: f32,
}

impl Mask {
    /// Keeps everything.
    pub const NONE: Mask = Mask { key: [0; 2], threshold: 0, factor: 1.0 };

    /// The mask of one `site` of a model in one `step` of a run.
    ///
    /// # Panics
    /// If `rate` is not in [0, 1).
    pub fn new(rate: f32, seed: u64, step: u64, site: u32) -> Self {
        assert!((0.0..1.0).contains(&rate), "a dropout rate of {rate}");
        if rate == 0.0 {
            return Mask::NONE;
        }
        let [a, b, ..] = Rng::new(seed, Stream::Dropout, step).words(site);
        Mask { key: [a, b], threshold: (f64::from(rate) * 2f64.powi(32)) as u32, factor: 1.0 / (1.0 - rate) }
    }

    /// Whether every factor is 1.
    pub fn is_none(&self) -> bool {
        self.threshold == 0
    }

    /// The key, the word below which a place is a zero, and the factor of the others.
    pub fn parts(&self) -> ([u32; 2], u32, f32) {
        (self.key, self.threshold, self.factor)
    }

    /// The factor at a place.
    pub fn factor(&self, row: u64, column: usize) -> f64 {
        let word = self.words(row, column / 4)[column % 4];
        if word < self.threshold { 0.0 } else { f64::from(self.factor) }
    }

    /// Multiplies `x` with the factors of `row` from `column` on.
    pub fn apply(&self, row: u64, column: usize, x: &mut [f32]) {
        if self.is_none() {
            return;
        }
        let (head, rest) = x.split_at_mut((column.next_multiple_of(4) - column).min(x.len()));
        for (i, x) in head.iter_mut().enumerate() {
            *x *= self.factor(row, column + i) as f32;
        }
        for (block, x) in (column.div_ceil(4)..).zip(rest.chunks_mut(4)) {
            for (x, word) in x.iter_mut().zip(self.words(row, block)) {
                *x *= if word < self.threshold { 0.0 } else { self.factor };
            }
        }
    }

    /// Of four columns.
    fn words(&self, row: u64, block: usize) -> [u32; 4] {
        philox4x32(self.key, [block as u32, Stream::Dropout as u32, row as u32, (row >> 32) as u32])
    }
}

fn unit(a: u32, b: u32) -> f64 {
    ((u64::from(a) << 21) ^ (u64::from(b) >> 11)) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Ten rounds of Philox4x32 over `counter` with `key`.
pub fn philox4x32(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let (p0, p1) = (u64::from(counter[0]) * 0xD251_1F53, u64::from(counter[2]) * 0xCD9E_8D57);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the Random123 distribution (`kat_vectors`, philox4x32 with 10 rounds).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0, !0], [!0; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_mask_zeroes_its_share_and_keeps_the_mean() {
        let mask = Mask::new(0.3, 5, 7, 11);
        let mut x = vec![1.0; 30_000];
        mask.apply(2, 0, &mut x);
        let zeros = x.iter().filter(|x| **x == 0.0).count() as f64 / x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
        assert!((zeros - 0.3).abs() < 0.01 && (mean - 1.0).abs() < 0.02, "{zeros} {mean}");
        for start in [1, 2, 3, 4, 5] {
            let mut part = vec![1.0; 9];
            mask.apply(2, start, &mut part);
            assert_eq!(part, x[start..start + 9]);
            assert!((0..9).all(|i| mask.factor(2, start + i) == f64::from(part[i])));
        }
        for other in [Mask::new(0.3, 6, 7, 11), Mask::new(0.3, 5, 8, 11), Mask::new(0.3, 5, 7, 12)] {
            let mut y = vec![1.0; 64];
            other.apply(2, 0, &mut y);
            assert_ne!(y, x[..64]);
        }
        let mut y = vec![1.0; 64];
        mask.apply(3, 0, &mut y);
        assert_ne!(y, x[..64]);
        Mask::new(0.0, 5, 7, 11).apply(2, 0, &mut y);
        assert!(y.contains(&0.0));
    }

    #[test]
    fn normals_have_unit_variance_and_no_correlation() {
        let mut x = vec![0.0; 40_000];
        Rng::new(1, Stream::Latent, 0).fill_normal(&mut x);
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
        let lag = x.windows(2).map(|w| w[0] * w[1]).sum::<f32>() / n;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03 && lag.abs() < 0.02, "{mean} {var} {lag}");
    }
}
