//! Logits of a pass, of a few tokens at a time.

use std::ops::Range;

use ndarray::{Array2, ArrayView3};

use super::decode_pass;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::generate::session::upload_latents;
use crate::model::Model;
use crate::model::encode::Row;

/// Tokens that the head takes at once: enough for the matrix product to run at its speed, and `(256, V)` logits are
/// small beside the activations of a pass.
const HEAD_TOKENS: usize = 256;

/// Calls `read(logits, part)` with the logits `(n, V)` of the tokens `index[part]` of `output (N, C)`, a part at a time.
pub(super) fn for_each_head<B: Backend>(
    model: &Model<B>,
    output: &B::Act,
    index: &[u32],
    mut read: impl FnMut(&B::Real, Range<usize>) -> Result<()>,
) -> Result<()> {
    let (backend, dims) = (&model.backend, &model.config.dims);
    let most = index.len().min(HEAD_TOKENS);
    let (mut hidden, mut logits) = (backend.act(most * dims.hidden)?, backend.real(most * dims.vocab)?);
    for (start, index) in (0..).step_by(HEAD_TOKENS).zip(index.chunks(HEAD_TOKENS)) {
        backend.gather_rows_fwd(&mut hidden, output, &backend.ids_from(index)?, index.len(), dims.hidden);
        backend.head_fwd(&mut logits, &hidden, &model.params.decoder.wte, index.len());
        read(&logits, start..start + index.len())?;
    }
    Ok(())
}

/// Where the logits of each row go: `out[r]`, which must be `(T, V)` and in standard order.
pub(super) fn places<'a>(rows: &[&[u32]], out: &'a mut [Array2<f32>], vocab: usize) -> Result<Vec<&'a mut [f32]>> {
    if rows.len() != out.len() {
        return Err(Error::input("out", format!("{} arrays for {} rows", out.len(), rows.len())));
    }
    let place = |(r, (ids, out)): (usize, (&&[u32], &'a mut Array2<f32>))| {
        let (found, needed) = (out.dim(), (ids.len(), vocab));
        out.as_slice_mut().filter(|_| found == needed).ok_or_else(|| {
            Error::input(
                format!("out[{r}]"),
                format!("{found:?} in another order or shape than {needed:?}, as is needed"),
            )
        })
    };
    rows.iter().zip(out).enumerate().map(place).collect()
}

/// The logits of the rows of a pass, each at its place.
pub(super) fn logits_pass<B: Backend>(
    model: &Model<B>,
    rows: &[&[u32]],
    z: ArrayView3<'_, f32>,
    places: &mut [&mut [f32]],
) -> Result<()> {
    let (backend, vocab) = (&model.backend, model.config.dims.vocab);
    let rows: Vec<Row<'_>> = rows.iter().map(|sentence| Row { condition: &[], sentence }).collect();
    let acts = decode_pass(model, &rows, &upload_latents(backend, z)?)?;
    let index: Vec<u32> = (0..rows.iter().map(Row::len).sum::<usize>() as u32).collect();
    for_each_head(model, &acts.output, &index, |logits, part| {
        let mut first = 0;
        for (row, place) in rows.iter().zip(&mut *places) {
            // Tokens of the pass that are of the row and of the part.
            let (start, end) = (part.start.max(first), part.end.min(first + row.len()));
            if start < end {
                let place = &mut place[(start - first) * vocab..(end - first) * vocab];
                backend.read_real_at(place, logits, (start - part.start) * vocab);
            }
            first += row.len();
        }
        Ok(())
    })
}
