//! Learning rate and β as functions of the step alone, so that a resumed run needs nothing but its step.
//!
//! Steps count from 0: step `s` is the update that follows `s` updates, and a run's last is `steps − 1`. Everything is
//! f64, in the order of operations of the published code, whose values are reproduced to the last bit.

use std::f64::consts::PI;

use super::settings::{BetaSchedule, LrSchedule, ObjectiveSettings, OptimSettings};

/// The learning rate of step `step` of `steps`. With `w` steps of warm-up and the progress
/// `p = (step − w) / (steps − w)`:
///
/// ```text
/// step < w    lr · step / w                                (so the first step of a warm-up changes nothing)
/// constant    lr
/// linear      lr · (f + (1 − f)(1 − p))                    f = final_lr
/// cosine      lr · (f + (1 − f)(1 + cos πp) / 2)
/// ```
///
/// Beyond `steps` it stays where `p = 1`.
pub fn learning_rate(optim: &OptimSettings, step: u64, steps: u64) -> f64 {
    if step < optim.warmup {
        return optim.lr * (step as f64 / optim.warmup as f64);
    }
    let (left, all) = (steps.saturating_sub(step) as f64, steps.saturating_sub(optim.warmup).max(1) as f64);
    let share = match optim.schedule {
        LrSchedule::Constant => return optim.lr,
        LrSchedule::Linear => left / all,
        LrSchedule::Cosine => (1.0 + (PI * (1.0 - left / all)).cos()) / 2.0,
    };
    optim.lr * (optim.final_lr + (1.0 - optim.final_lr) * share)
}

/// The weight of the KL in step `step` of `steps`. With `n = beta_steps`, or `steps` where that is not set, `m` cycles,
/// and `a → b` from `beta_start` to `beta`:
///
/// ```text
/// constant    b
/// linear      a + (b − a) · min(1, step / n)
/// cyclic      a + (b − a) · min(1, τ / R)                  τ = (step mod ⌈n/m⌉) / (n/m), R = beta_ratio
/// published   loc = step mod ⌊n/m⌋, q = ⌊⌊n/m⌋/4⌋
///             loc ≤ 2q: a;  loc ≤ 3q: ((loc mod q)/q)(b − a);  else b
/// step ≥ n    b
/// ```
///
/// `cyclic` is Fu et al. 2019 (arXiv 1903.10145, equations 6 and 7), whose `t` counts from 1. `published` is what the
/// published models were trained with: 0 instead of `b` at `loc = 3q`, and not starting from `a` while it rises.
pub fn beta(objective: &ObjectiveSettings, step: u64, steps: u64) -> f64 {
    let n = objective.beta_steps.unwrap_or(steps);
    let (start, stop, cycles) = (objective.beta_start, objective.beta, objective.beta_cycles.max(1));
    if step >= n {
        return stop;
    }
    // `start + (stop − start)` need not be `stop`
    let between = |share: f64| if share < 1.0 { start + (stop - start) * share } else { stop };
    match objective.beta_schedule {
        BetaSchedule::Constant => stop,
        BetaSchedule::Linear => between(step as f64 / n as f64),
        BetaSchedule::Cyclic => {
            let tau = (step % n.div_ceil(cycles)) as f64 / (n as f64 / cycles as f64);
            between(tau / objective.beta_ratio)
        }
        BetaSchedule::Published => {
            let period = (n / cycles).max(1);
            let (loc, quarter) = (step % period, period / 4);
            if loc <= 2 * quarter {
                start
            } else if loc <= 3 * quarter {
                (loc % quarter) as f64 / quarter as f64 * (stop - start)
            } else {
                stop
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optim(schedule: LrSchedule) -> OptimSettings {
        OptimSettings { lr: 0.5, schedule, warmup: 4, final_lr: 0.25, ..OptimSettings::default() }
    }

    fn cycles(beta_schedule: BetaSchedule) -> ObjectiveSettings {
        ObjectiveSettings { beta_schedule, beta: 0.5, beta_start: 0.1, beta_cycles: 2, ..ObjectiveSettings::default() }
    }

    #[test]
    fn learning_rates_rise_and_fall() {
        for (schedule, middle, last) in [
            (LrSchedule::Constant, 0.5, 0.5),
            (LrSchedule::Linear, 0.5 * 0.625, 0.5 * (0.25 + 0.75 / 16.0)),
            (LrSchedule::Cosine, 0.5 * 0.625, 0.5 * (0.25 + 0.375 * (1.0 - (PI / 16.0).cos()))),
        ] {
            let lr = |step| learning_rate(&optim(schedule), step, 20);
            assert_eq!([lr(0), lr(1), lr(4)], [0.0, 0.125, 0.5], "{schedule}");
            assert!((lr(12) - middle).abs() < 1e-15 && (lr(19) - last).abs() < 1e-15, "{schedule}");
            let end = if schedule == LrSchedule::Constant { 0.5 } else { 0.125 };
            assert!([20, 21, u64::MAX].iter().all(|&step| (lr(step) - end).abs() < 1e-15), "{schedule}");
        }
    }

    /// Fu et al.'s figure: half of each cycle rises, half stays; a cycle's length need not be a whole number.
    #[test]
    fn cycles_rise_and_stay() {
        let beta = |step, steps| beta(&cycles(BetaSchedule::Cyclic), step, steps);
        let first: Vec<f64> = (0..8).map(|step| beta(step, 16)).collect();
        assert_eq!(first, [0.1, 0.2, 0.1 + 0.4 * 0.5, 0.4, 0.5, 0.5, 0.5, 0.5]);
        assert!((0..8).all(|step| beta(step, 16) == beta(step + 8, 16)) && beta(16, 16) == 0.5);
        assert_eq!([beta(0, 15), beta(7, 15), beta(8, 15)], [0.1, 0.5, 0.1]);
    }

    #[test]
    fn beta_stays_after_its_steps() {
        let mut objective = cycles(BetaSchedule::Linear);
        assert_eq!([0, 5, 10, 99].map(|step| beta(&objective, step, 10)), [0.1, 0.1 + 0.4 * 0.5, 0.5, 0.5]);
        objective.beta_steps = Some(5);
        assert_eq!([0, 4, 5, 99].map(|step| beta(&objective, step, 10)), [0.1, 0.1 + 0.4 * 0.8, 0.5, 0.5]);
        // where another cycle would begin
        objective.beta_steps = Some(8);
        for schedule in [BetaSchedule::Constant, BetaSchedule::Cyclic, BetaSchedule::Published] {
            objective.beta_schedule = schedule;
            assert_eq!(beta(&objective, 8, 10), 0.5, "{schedule}");
        }
    }

    /// Cycles shorter than their quarters are no reason to stop.
    #[test]
    fn tiny_runs_have_schedules() {
        for schedule in [BetaSchedule::Constant, BetaSchedule::Linear, BetaSchedule::Cyclic, BetaSchedule::Published] {
            for steps in 0..10 {
                let objective = ObjectiveSettings { beta_cycles: 4, ..cycles(schedule) };
                assert!((0..12).all(|step| (0.1..=0.5).contains(&beta(&objective, step, steps))), "{schedule} {steps}");
            }
        }
        for schedule in [LrSchedule::Constant, LrSchedule::Linear, LrSchedule::Cosine] {
            for steps in 0..6 {
                assert!((0..8).all(|step| (0.0..=0.5).contains(&learning_rate(&optim(schedule), step, steps))));
            }
        }
    }
}
