//! Learning rate and β, step by step, as the published code had them.

use std::path::{Path, PathBuf};

use della::io::Checkpoint;
use della::train::schedule::{beta, learning_rate};
use della::train::settings::{BetaSchedule, LrSchedule, ObjectiveSettings, OptimSettings};
use serde::Deserialize;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// "linear warmup 3 steps then linear decay to 0 over 12 steps", and β in one published cycle from 1e-3.
#[test]
fn recorded_training_run() {
    let case = Checkpoint::open_as_is(fixture("train/case_train.safetensors")).unwrap();
    let optim = OptimSettings { lr: 0.002, schedule: LrSchedule::Linear, warmup: 3, ..OptimSettings::default() };
    let found: Vec<f64> = (0..12).map(|step| learning_rate(&optim, step, 12)).collect();
    assert_eq!(found, case.read_f64("lr").unwrap());
    let objective = ObjectiveSettings {
        beta_schedule: BetaSchedule::Published,
        beta_start: 1e-3,
        beta_cycles: 1,
        ..ObjectiveSettings::default()
    };
    let found: Vec<f64> = (0..12).map(|step| beta(&objective, step, 12)).collect();
    assert_eq!(found, case.read_f64("beta").unwrap());
}

#[derive(Deserialize)]
struct Recorded {
    n_steps: u64,
    start: f64,
    stop: f64,
    n_cycle: u64,
    beta: Vec<f64>,
}

#[test]
fn recorded_beta_schedules() {
    let recorded: Vec<Recorded> =
        serde_json::from_slice(&std::fs::read(fixture("beta_schedule.json")).unwrap()).unwrap();
    assert_eq!(recorded.len(), 4);
    for case in recorded {
        let objective = ObjectiveSettings {
            beta_schedule: BetaSchedule::Published,
            beta: case.stop,
            beta_start: case.start,
            beta_cycles: case.n_cycle,
            ..ObjectiveSettings::default()
        };
        let found: Vec<f64> = (0..case.n_steps).map(|step| beta(&objective, step, case.n_steps)).collect();
        assert_eq!(found, case.beta, "{} steps in {} cycles", case.n_steps, case.n_cycle);
    }
}
