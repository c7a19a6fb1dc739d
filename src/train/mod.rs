//! Training: from files of sentences to a better model.

pub mod checkpoint;
pub mod data;
mod draw;
pub mod lock;
pub mod log;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod start;
