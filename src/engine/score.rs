//! How well the decoder predicts given sentences, without logits of more than a few tokens at a time.

use super::decode_pass;
use super::head::for_each_head;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::Model;
use crate::model::encode::Row;

/// How well one row's sentence was predicted, token by token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowScore {
    /// `−log p(token | the tokens before it, z)` in nats, of every token of the sentence after its first.
    pub nll: Vec<f64>,
    /// Whether that token had the largest logit, the lowest id of equals.
    pub correct: Vec<bool>,
}

impl RowScore {
    /// `−log p(x|z)` in nats.
    pub fn sum(&self) -> f64 {
        self.nll.iter().sum()
    }
}

/// Scores the rows of a pass.
pub(super) fn score_pass<B: Backend>(model: &Model<B>, rows: &[Row<'_>], z: &[B::Real]) -> Result<Vec<RowScore>> {
    let (backend, dims) = (&model.backend, &model.config.dims);
    let acts = decode_pass(model, rows, z)?;
    let (mut index, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let targets_of_row = row.sentence.get(1..).unwrap_or_default();
        let first = start + row.condition.len();
        index.extend((first..first + targets_of_row.len()).map(|n| n as u32));
        targets.extend_from_slice(targets_of_row);
        start += row.len();
    }
    let (mut losses, mut host) = (backend.real(index.len())?, Vec::new());
    let (mut nll, mut correct) = (vec![0.0; index.len()], Vec::with_capacity(index.len()));
    for_each_head(model, &acts.output, &index, |logits, part| {
        let targets = &targets[part.clone()];
        backend.cross_entropy_fwd(&mut losses, logits, &backend.ids_from(targets)?, part.len(), dims.vocab);
        backend.read_real(&mut nll[part.clone()], &losses);
        host.resize(part.len() * dims.vocab, 0.0_f32);
        backend.read_real(&mut host, logits);
        correct
            .extend(host.chunks_exact(dims.vocab).zip(targets).map(|(logits, &id)| is_greatest(logits, id as usize)));
        Ok(())
    })?;
    let (mut nll, mut correct) = (nll.into_iter(), correct.into_iter());
    Ok(rows
        .iter()
        .map(|row| {
            let count = row.sentence.len().saturating_sub(1);
            RowScore { nll: nll.by_ref().take(count).collect(), correct: correct.by_ref().take(count).collect() }
        })
        .collect())
}

/// Whether `id` has the largest logit, and the lowest id of those that have.
fn is_greatest(logits: &[f32], id: usize) -> bool {
    let logit = logits[id];
    logits[..id].iter().all(|&x| x < logit) && logits[id + 1..].iter().all(|&x| x <= logit)
}

#[cfg(test)]
mod tests {
    use super::is_greatest;

    #[test]
    fn of_equals_the_lower_id_is_greatest() {
        let logits = [1.0, 2.0, 1.0, 2.0];
        assert_eq!([0, 1, 2, 3].map(|id| is_greatest(&logits, id)), [false, true, false, false]);
        assert!(!is_greatest(&[f32::NAN, 1.0], 1) && !is_greatest(&[1.0, f32::NAN], 0));
    }
}
