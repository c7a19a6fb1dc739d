//! The reconstruction loss.

use super::Storage;

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
}
