//! The one integration binary: a module per topic.

/// Inputs, comparisons, and one operation on every device.
mod util;

/// The `della` command, from its arguments to its exit code.
mod cli;
/// The CUDA backend on the emulated device.
#[cfg(feature = "cuda")]
mod cuda;
/// Training corpora: files of sentences, and the caches made of them.
mod data;
/// Requests: a row gives the same bits in any company, cached or not.
mod engine;
/// Scores of sentences and what they are summed up to.
mod eval;
/// Recorded outputs of the published code, reproduced; and a wrong weight, found.
mod golden;
/// The gradient of the whole model, against differences of its loss.
mod gradients;
/// Who may import whom, and where unsafe code lives.
mod layering;
/// Weights from files, whole and damaged.
mod loaders;
/// The memory that opening a model takes.
mod memory;
/// Every op on every device against the oracle, and bit for bit against itself.
mod ops;
/// Sampling: recorded cases, and what holds for any logits.
mod sampling;
/// Learning rate and β: recorded trajectories.
mod schedules;
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
/// Runs: saved, killed, resumed, refused; what they start from.
mod train;
