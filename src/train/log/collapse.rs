//! A watch over the posterior: when it becomes the prior, whatever the sentence, the latents say nothing and the decoder
//! is a language model. That is the usual way for a text VAE to fail, and it looks well in the loss.

use super::Record;
use crate::model::gradient::Reconstruction;
use crate::train::settings::{BetaSchedule, ObjectiveSettings, Settings};

/// KL in nats of a layer, on average over layers, below which nothing passes.
const LEAST_KL: f64 = 0.1;

/// Share of active units below which nothing passes.
const LEAST_ACTIVE: f64 = 0.02;

/// What is left of a record's weight in the mean after the next.
const KEPT: f64 = 0.8;

/// Records before the mean is believed.
const LEAST_RECORDS: u32 = 5;

/// How far above its threshold a value must be for the next warning, in multiples.
const RECOVERED: f64 = 2.0;

/// Watches records; warns once until things are well again.
pub struct Collapse {
    objective: ObjectiveSettings,
    /// The first step that counts: after the warm-up, and a tenth of the run.
    first: u64,
    units: usize,
    seen: u32,
    weight: f64,
    kl: f64,
    active: f64,
    warned: bool,
}

impl Collapse {
    /// For a run of `steps` steps of a model with `units` latent units in all layers together.
    pub fn new(settings: &Settings, steps: u64, units: usize) -> Self {
        let first = settings.optim.warmup.max(steps / 10);
        let objective = settings.objective.clone();
        Collapse { objective, first, units, seen: 0, weight: 0.0, kl: 0.0, active: 0.0, warned: false }
    }

    /// Takes a record; what to tell if the posterior has collapsed, in means over the last few records, and it was not
    /// told yet.
    pub fn watch(&mut self, record: &Record) -> Option<String> {
        if record.step < self.first || !record.kl.is_finite() {
            return None;
        }
        let active = record.active_units.iter().sum::<usize>() as f64;
        for (mean, value) in [(&mut self.weight, 1.0), (&mut self.kl, record.kl), (&mut self.active, active)] {
            *mean = *mean * KEPT + value * (1.0 - KEPT);
        }
        self.seen += 1;
        let (kl, active) = (self.kl / self.weight, self.active / self.weight);
        let layers = record.kl_layers.len().max(1);
        let (least_kl, least_active) = (LEAST_KL * layers as f64, LEAST_ACTIVE * self.units as f64);
        if kl > least_kl * RECOVERED && active > least_active * RECOVERED {
            self.warned = false;
        }
        let collapsed = kl < least_kl || active < least_active;
        if !collapsed || self.warned || self.seen < LEAST_RECORDS {
            return None;
        }
        self.warned = true;
        Some(format!(
            "the posterior collapses at step {}: {kl:.3} nats of KL ({least_kl:.1} are expected at least), {active:.0} of {} \
             units active (at least {least_active:.1}). The decoder learns to do without the latents. {}",
            record.step,
            self.units,
            self.advice(record.beta)
        ))
    }

    /// What was not tried yet.
    fn advice(&self, beta: f64) -> String {
        let objective = &self.objective;
        let mut advice = vec![match objective.rec {
            Reconstruction::Token => format!(
                "lower objective.beta (now {beta}; a reconstruction loss per token, as objective.rec = \"token\" has it, \
                 calls for about 1 / the tokens of a sentence)"
            ),
            Reconstruction::Sum => format!("lower objective.beta (now {beta})"),
        }];
        if objective.beta_schedule == BetaSchedule::Constant {
            advice.push("let it rise from 0 with objective.beta_schedule = \"cyclic\"".into());
        }
        if objective.free_bits == 0.0 {
            advice.push("give each layer objective.free_bits = 0.5, objective.free_bits_by = \"layer\"".into());
        }
        if objective.word_dropout == 0.0 {
            advice.push("hide input words from the decoder with objective.word_dropout = 0.3".into());
        }
        format!("To mend it: {}.", advice.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: [u64; 0] = [];

    fn record(step: u64, kl: f64, active: usize) -> Record {
        Record { step, kl, kl_layers: vec![kl / 2.0; 2], active_units: vec![active, 0], beta: 1.0, ..Record::default() }
    }

    /// The steps at which there is a warning, of records given one after the other.
    fn warnings(collapse: &mut Collapse, records: impl IntoIterator<Item = (u64, f64, usize)>) -> Vec<u64> {
        let mut warned = Vec::new();
        for (step, kl, active) in records {
            warned.extend(collapse.watch(&record(step, kl, active)).map(|_| step));
        }
        warned
    }

    #[test]
    fn one_warning_until_recovery() {
        let mut collapse = Collapse::new(&Settings::default(), 300, 100);
        assert_eq!(warnings(&mut collapse, (0..30).map(|step| (step, 0.0, 0))), NEVER, "the run has only begun");
        assert_eq!(warnings(&mut collapse, (30..60).map(|step| (step, 0.0, 0))), [34]);
        assert_eq!(warnings(&mut collapse, (60..90).map(|step| (step, 0.3, 3))), NEVER, "not well yet");
        assert_eq!(warnings(&mut collapse, (90..99).map(|step| (step, 0.0, 0))), NEVER, "so it was told");
        assert_eq!(warnings(&mut collapse, (100..150).map(|step| (step, 5.0, 50))), NEVER);
        assert_eq!(warnings(&mut collapse, (150..200).map(|step| (step, 0.0, 50))).len(), 1);
    }

    #[test]
    fn either_sign_is_enough() {
        let run = |kl, active| {
            let mut collapse = Collapse::new(&Settings::default(), 0, 100);
            warnings(&mut collapse, (1..20).map(|step| (step, kl, active))).len()
        };
        assert_eq!([run(0.19, 50), run(5.0, 1), run(0.21, 2), run(f64::NAN, 50)], [1, 1, 0, 0]);
        let mut settings = Settings::default();
        settings.optim.warmup = 15;
        let mut collapse = Collapse::new(&settings, 100, 100);
        assert_eq!(warnings(&mut collapse, (1..30).map(|step| (step, 0.0, 0))), [19], "after the warm-up");
        // one bad record among good ones
        let mut collapse = Collapse::new(&Settings::default(), 0, 100);
        let good = (1..20).map(|step| (step, if step == 10 { 0.0 } else { 5.0 }, 50));
        assert_eq!(warnings(&mut collapse, good), NEVER);
    }

    #[test]
    fn the_warning_says_what_was_not_tried() {
        let text = |settings: &Settings| {
            let mut collapse = Collapse::new(settings, 0, 100);
            (1..20).find_map(|step| collapse.watch(&record(step, 0.05, 1))).unwrap()
        };
        let mut settings = Settings::default();
        settings.objective.rec = Reconstruction::Token;
        settings.objective.beta_schedule = BetaSchedule::Constant;
        let all = text(&settings);
        for part in
            ["step 5: 0.050 nats", "(0.2 are", "1 of 100 units", "beta (now 1;", "cyclic", "free_bits", "word_dropout"]
        {
            assert!(all.contains(part), "{part}: {all}");
        }
        settings.objective = ObjectiveSettings {
            rec: Reconstruction::Sum,
            beta_schedule: BetaSchedule::Cyclic,
            free_bits: 1.0,
            word_dropout: 0.1,
            ..settings.objective
        };
        assert!(text(&settings).ends_with("To mend it: lower objective.beta (now 1)."));
    }
}
