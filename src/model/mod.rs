//! The model, written once over [`Backend`](crate::backend::Backend).

pub mod config;
pub mod params;
