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
}
