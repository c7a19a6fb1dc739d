//! The sizes of a model.

/// Sizes, with the letters that formulas and shapes use for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// `V`: rows of the token embedding.
    pub vocab: usize,
    /// `P`: rows of the position embedding, the longest sequence.
    pub positions: usize,
    /// `C`: width of the residual stream.
    pub hidden: usize,
    /// `H`: attention heads.
    pub heads: usize,
    /// `F`: width inside the MLP.
    pub inner: usize,
    /// `L`: blocks of each stack, and latents.
    pub layers: usize,
    /// `Z`: width of one latent.
    pub latent: usize,
    /// Whether prior and posterior also see a condition.
    pub conditional: bool,
}

impl Dims {
    /// `D = C / H`.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Input width of a prior net: `[s]`, conditional `[c, s]`.
    pub fn prior_inputs(&self) -> usize {
        self.latent + if self.conditional { self.hidden } else { 0 }
    }

    /// Input width of a posterior net: `[r, s]`, conditional `[c, r, s]`.
    pub fn posterior_inputs(&self) -> usize {
        self.hidden + self.prior_inputs()
    }
}
