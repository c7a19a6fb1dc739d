//! Training: the settings of a run, its schedules, and what it tells while it runs.

pub mod lock;
pub mod log;
pub mod schedule;
pub mod settings;
