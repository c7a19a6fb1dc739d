//! The ranges of settings.

use std::fmt::Display;

use super::Settings;
use crate::error::{Error, Result};

impl Settings {
    /// Whether every value is in its range; what depends on data, model or device is checked where it is used.
    ///
    /// # Errors
    /// The first that is not, as `section.key`.
    pub fn validate(&self) -> Result<()> {
        let Settings { model, data, batch, optim, objective, run } = self;
        for (key, value) in [
            ("model.layers", model.layers),
            ("model.hidden", model.hidden),
            ("model.heads", model.heads),
            ("model.latent", model.latent),
            ("batch.tokens", batch.tokens),
            ("batch.accumulate", batch.accumulate),
            ("run.keep_last", run.keep_last),
            ("batch.rows", batch.rows.unwrap_or(1)),
            ("data.max_chars", data.max_chars.unwrap_or(1)),
            ("run.threads", run.threads.unwrap_or(1)),
        ] {
            check(key, value, value >= 1, "at least 1 is needed")?;
        }
        for (key, value) in [
            ("objective.beta_cycles", objective.beta_cycles),
            ("run.log_every", run.log_every),
            ("objective.beta_steps", objective.beta_steps.unwrap_or(1)),
            ("run.steps", run.steps.unwrap_or(1)),
            ("data.limit", data.limit.unwrap_or(1)),
            ("data.valid_limit", data.valid_limit.unwrap_or(1)),
        ] {
            check(key, value, value >= 1, "at least 1 is needed")?;
        }
        for (key, value) in [
            ("model.embd_dropout", model.embd_dropout.unwrap_or(0.0)),
            ("model.attn_dropout", model.attn_dropout.unwrap_or(0.0)),
            ("model.resid_dropout", model.resid_dropout.unwrap_or(0.0)),
            ("optim.betas", optim.betas[0]),
            ("optim.betas", optim.betas[1]),
            ("objective.word_dropout", objective.word_dropout),
            ("objective.latent_dropout", objective.latent_dropout),
        ] {
            check(key, value, (0.0..1.0).contains(&value), "a number from 0 and below 1 is needed")?;
        }
        for (key, value) in [
            ("optim.lr", optim.lr),
            ("optim.epsilon", optim.epsilon),
            ("run.epochs", run.epochs.unwrap_or(1.0)),
            ("run.time_limit", run.time_limit.unwrap_or(1.0)),
        ] {
            check(key, value, value > 0.0 && value.is_finite(), "a number above 0 is needed")?;
        }
        for (key, value) in [
            ("optim.weight_decay", optim.weight_decay),
            ("optim.clip", optim.clip),
            ("objective.beta", objective.beta),
            ("objective.beta_start", objective.beta_start),
            ("objective.free_bits", objective.free_bits),
        ] {
            check(key, value, value >= 0.0 && value.is_finite(), "a number from 0 is needed")?;
        }
        let share = optim.final_lr;
        check("optim.final_lr", share, (0.0..=1.0).contains(&share), "a share from 0 to 1 is needed")?;
        let ratio = objective.beta_ratio;
        check("objective.beta_ratio", ratio, ratio > 0.0 && ratio <= 1.0, "a share above 0, to 1, is needed")?;
        let rule = format!("a divisor of model.hidden ({}) is needed", model.hidden);
        check("model.heads", model.heads, model.hidden.is_multiple_of(model.heads), &rule)?;
        let rule = "at least 3 are needed: a beginning, a token and an end";
        check("model.positions", model.positions, model.positions >= 3, rule)?;
        check("run.seed", run.seed, i64::try_from(run.seed).is_ok(), "TOML has numbers up to 9223372036854775807")?;
        match (run.steps, run.epochs) {
            (Some(steps), Some(epochs)) => {
                let message =
                    format!("{steps} steps and run.epochs = {epochs} are two lengths of one run; leave one out");
                Err(Error::input("run.steps", message))
            }
            _ => Ok(()),
        }
    }
}

fn check(key: &str, value: impl Display, good: bool, rule: &str) -> Result<()> {
    if good { Ok(()) } else { Err(Error::input(key, format!("{value} was found; {rule}"))) }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use crate::error::Result;

    fn resolve(text: &str) -> Result<Settings> {
        Settings::resolve(None, &text.parse().unwrap())
    }

    /// One value of each rule that breaks it, and the nearest that does not.
    #[test]
    fn values_out_of_range_are_named() {
        let cases = [
            ("model.layers", "0", "1"),
            ("model.heads", "3", "8"),
            ("model.heads", "0", "256"),
            ("model.positions", "2", "3"),
            ("model.embd_dropout", "1.0", "0.999"),
            ("model.attn_dropout", "-0.1", "0"),
            ("model.resid_dropout", "nan", "0.5"),
            ("data.max_chars", "0", "1"),
            ("data.limit", "0", "1"),
            ("data.valid_limit", "0", "1"),
            ("batch.tokens", "0", "1"),
            ("batch.rows", "0", "1"),
            ("batch.accumulate", "0", "1"),
            ("optim.lr", "0.0", "1e-9"),
            ("optim.lr", "inf", "1e9"),
            ("optim.betas", "[0.9, 1.0]", "[0.0, 0.0]"),
            ("optim.betas", "[-0.1, 0.9]", "[0.999, 0.999]"),
            ("optim.epsilon", "0.0", "1e-12"),
            ("optim.weight_decay", "-1.0", "0.0"),
            ("optim.clip", "nan", "0.0"),
            ("optim.final_lr", "1.1", "1.0"),
            ("objective.beta", "-1.0", "0.0"),
            ("objective.beta_start", "inf", "2.0"),
            ("objective.beta_cycles", "0", "1"),
            ("objective.beta_ratio", "0.0", "1.0"),
            ("objective.beta_steps", "0", "1"),
            ("objective.free_bits", "-0.5", "0.0"),
            ("objective.word_dropout", "1.0", "0.0"),
            ("objective.latent_dropout", "1.5", "0.9"),
            ("run.steps", "0", "1"),
            ("run.epochs", "0.0", "0.1"),
            ("run.seed", "-1", "9223372036854775807"),
            ("run.log_every", "0", "1"),
            ("run.keep_last", "0", "1"),
            ("run.threads", "0", "1"),
            ("run.time_limit", "0.0", "0.5"),
        ];
        for (key, bad, good) in cases {
            let error = resolve(&format!("{key} = {bad}")).unwrap_err().to_string();
            // a negative whole number is not even of the right kind
            assert!(error.starts_with(&format!("{key}: ")) || bad == "-1", "{key} = {bad}: {error}");
            resolve(&format!("{key} = {good}")).unwrap_or_else(|e| panic!("{key} = {good}: {e}"));
        }
        let error = resolve("optim.clip = -2.0").unwrap_err().to_string();
        assert_eq!(error, "optim.clip: -2 was found; a number from 0 is needed");
        let error = resolve("[run]\nsteps = 1\nepochs = 2.0").unwrap_err().to_string();
        assert!(error.contains("run.steps: 1 steps and run.epochs = 2 are"), "{error}");
    }
}
