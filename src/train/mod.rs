//! Training: from files of sentences to a better model.

pub mod data;
pub mod schedule;
pub mod settings;
