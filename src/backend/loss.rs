//! The reconstruction loss.

use super::Storage;

/// Which rules choose a token; see [`crate::generate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rules {
    /// The usual ones.
    Usual = 0,
    /// The published code's.
    Reference = 1,
    /// The most probable token, of equals the lowest.
    Greedy = 2,
}

/// How the next token of a row is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// By which rules.
    pub rules: Rules,
    /// Of so many tokens; 0 for all.
    pub top_k: usize,
    /// Of tokens with this mass; 0 and 1 for all.
    pub top_p: f32,
    /// Divides the logits.
    pub temperature: f32,
    /// Discourages what is in `history`; 1 does not.
    pub repetition_penalty: f32,
    /// The draw is that of [`Rng::uniform`](crate::rng::Rng::uniform) with this seed,
    pub seed: u64,
    /// this row,
    pub number: u64,
    /// and this step, in the stream of tokens.
    pub step: u32,
    /// The row's tokens so far.
    pub history: &'a [u32],
}

/// For a row whose token the host is to choose; of a device that chooses, one whose logits are not numbers.
pub const NO_TOKEN: u32 = u32::MAX;

/// Losses over the vocabulary.
pub trait LossOps: Storage {
    /// `loss_n = log Σ_v exp(logits_{n,v}) − logits_{n,target_n}`, in nats; `loss (N)`, `logits (N, V)`, `targets (N)`.
    fn cross_entropy_fwd(
        &self,
        loss: &mut Self::Real,
        logits: &Self::Real,
        targets: &Self::Ids,
        tokens: usize,
        vocab: usize,
    );

    /// Replaces logits by their gradient: `weight_n (softmax(logits_n) − onehot(target_n))`; `logits (N, V)`, `targets`,
    /// `weights (N)`.
    fn cross_entropy_bwd(
        &self,
        logits: &mut Self::Real,
        targets: &Self::Ids,
        weights: &Self::Real,
        tokens: usize,
        vocab: usize,
    );

    /// Chooses a token for each of `draws`; `logits (rows, V)`. What the device leaves to the host stays as it is.
    fn sample<'a>(
        &self,
        _tokens: &mut [u32],
        _logits: &Self::Real,
        _draws: impl ExactSizeIterator<Item = Draw<'a>>,
        _vocab: usize,
    ) {
    }
}
