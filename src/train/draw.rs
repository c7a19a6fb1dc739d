//! What is drawn for the rows of a batch: a function of the run's seed and of how many rows came before, so that it is the
//! same however rows fall into batches, and needs no saved generator.

use crate::dims::Dims;
use crate::rng::{Mask, Rng, Stream};
use crate::train::data::RowIds;

/// `(L, R, Z)`: standard normal noise of the latents of `rows` rows, of which `first` came before.
pub(super) fn noise(seed: u64, first: u64, rows: usize, dims: &Dims) -> Vec<f32> {
    by_layer(first, rows, dims, |row, values| Rng::new(seed, Stream::Latent, row).fill_normal(values))
}

/// `(L, R, Z)`: factors that drop a share of the latents' units.
pub(super) fn latent_mask(rate: f64, seed: u64, first: u64, rows: usize, dims: &Dims) -> Vec<f32> {
    /// A site that no stack of blocks reaches.
    const SITE: u32 = u32::MAX;
    let mask = Mask::new(rate as f32, seed, 0, SITE);
    by_layer(first, rows, dims, |row, values| {
        values.fill(1.0);
        mask.apply(row, 0, values);
    })
}

/// What the decoder reads of the rows: each token of a sentence but the first is `unk` with the probability `rate`
/// (Bowman et al. 2016). Conditions stay.
pub(super) fn dropped_words(rate: f64, seed: u64, first: u64, rows: &[RowIds], unk: u32) -> Vec<u32> {
    let mut ids = Vec::new();
    for (row, RowIds { condition, sentence }) in (first..).zip(rows) {
        let rng = Rng::new(seed, Stream::WordDropout, row);
        let dropped = |t: usize| t > 0 && rng.uniform(t as u32) < rate;
        ids.extend_from_slice(condition);
        ids.extend(sentence.iter().enumerate().map(|(t, &id)| if dropped(t) { unk } else { id }));
    }
    ids
}

fn by_layer(first: u64, rows: usize, dims: &Dims, fill: impl Fn(u64, &mut [f32])) -> Vec<f32> {
    let (layers, latent) = (dims.layers, dims.latent);
    let (mut all, mut row) = (vec![0.0; layers * rows * latent], vec![0.0; layers * latent]);
    for r in 0..rows {
        fill(first + r as u64, &mut row);
        for l in 0..layers {
            all[(l * rows + r) * latent..][..latent].copy_from_slice(&row[l * latent..][..latent]);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims =
        Dims { vocab: 9, positions: 8, hidden: 4, heads: 1, inner: 4, layers: 3, latent: 5, conditional: false };

    /// Rows 7 to 10 in one batch and in two.
    #[test]
    fn draws_do_not_depend_on_batches() {
        let row = |all: &[f32], rows: usize, r: usize| -> Vec<f32> {
            (0..3).flat_map(|l| all[(l * rows + r) * 5..][..5].to_vec()).collect()
        };
        for draw in [|first, rows| noise(1, first, rows, &DIMS), |first, rows| latent_mask(0.5, 1, first, rows, &DIMS)]
        {
            let (whole, rest) = (draw(7, 4), draw(9, 2));
            assert_eq!(row(&whole, 4, 2), row(&rest, 2, 0));
            assert_eq!(row(&whole, 4, 3), row(&rest, 2, 1));
            assert_ne!(row(&whole, 4, 0), row(&whole, 4, 1));
        }
        let rows = [RowIds { condition: vec![5, 6], sentence: vec![1; 200] }];
        let dropped = dropped_words(0.3, 1, 7, &rows, 3);
        assert_eq!((dropped.len(), &dropped[..3]), (202, &[5, 6, 1][..]));
        let unknown = dropped.iter().filter(|id| **id == 3).count();
        assert!((40..80).contains(&unknown), "{unknown} of 200");
        assert_eq!(dropped, dropped_words(0.3, 1, 7, &rows, 3));
    }
}
