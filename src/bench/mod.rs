//! Times of whole models and single operations, beside what this machine can do at most; `della bench` prints them.
//!
//! A [`Plan`] names [`cases`] and kernels ([`variant`]); [`run()`] prepares each of them, checks its result
//! ([`Error::Wrong`](crate::Error::Wrong) if it is not what it must be: what computes wrongly is not timed), takes times of
//! everything that is compared in turn ([`measure`]), and hands out [`Row`]s, which hold the share of the [`Limits`] that
//! was reached. Rows can be printed ([`report`]), compared with earlier ones ([`compare`]) and drawn ([`charts`]).

pub mod cases;
pub mod charts;
pub mod compare;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod limits;
pub mod measure;
pub mod models;
pub mod ops;
pub mod report;
mod run;
pub mod variant;

pub use cases::{Case, Op};
pub use limits::Limits;
pub use models::{Source, Weights};
pub use report::Row;
pub use run::{Plan, run};
pub use variant::Select;
