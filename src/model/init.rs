//! Initial weights.

use rayon::prelude::*;

use super::params::{Init, Spec};
use crate::rng::{Rng, Stream};

/// Values per draw of the generator's counter, and per parallel task.
const BLOCK: usize = 1 << 16;

impl Spec {
    /// The parameter's initial values: a function of `seed` and `index`, the parameter's place in
    /// [`Params::list`](super::Params::list), alone.
    pub fn initial(&self, seed: u64, index: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
            let rng = Rng::new(seed, Stream::Init, index as u64 | (block as u64) << 32);
            match self.init {
                Init::Constant(constant) => values.fill(constant),
                Init::Normal { deviation } => {
                    rng.fill_normal(values);
                    values.iter_mut().for_each(|x| *x *= deviation);
                }
                Init::Uniform { bound } => {
                    for (step, x) in values.iter_mut().enumerate() {
                        *x = bound * (2.0 * rng.uniform(step as u32) as f32 - 1.0);
                    }
                }
            }
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Config;

    /// Moments of the initial values against the specification, and that no two parameters share their draws.
    #[test]
    fn initial_values_have_the_specified_spread() {
        let config = Config::preset("randeng-226m").unwrap();
        let specs = config.specs();
        let specs = specs.list();
        let deviation = |name: &str| {
            let (index, spec) = specs.iter().enumerate().find(|(_, s)| s.name == name).unwrap();
            let values = spec.initial(3, index);
            let square: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            ((square / values.len() as f64).sqrt(), values)
        };
        let near = |(found, _): &(f64, Vec<f32>), wanted: f64| (found / wanted - 1.0).abs() < 0.02;
        let qkv = deviation("model.encoder.transformer.h.0.attn.c_attn.weight");
        assert!(near(&qkv, 0.02));
        assert!(near(&deviation("model.decoder.transformer.h.3.mlp.c_proj.weight"), 0.02 / 24f64.sqrt()));
        assert!(near(&deviation("model.latent_nets.0.W_hh.weight"), 1.0 / 16.0 / 3f64.sqrt()));
        assert!(near(&deviation("model.decoder.transformer.ln_f.weight"), 1.0));
        assert_eq!(deviation("model.decoder.transformer.ln_f.bias").0, 0.0);
        let other = deviation("model.encoder.transformer.h.1.attn.c_attn.weight");
        assert_ne!(qkv.1[..8], other.1[..8]);
    }
}
