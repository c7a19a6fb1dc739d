//! The one integration binary: a module per topic.

/// Inputs, comparisons, and one operation on every device.
mod util;

/// The `della` command, from its arguments to its exit code.
mod cli;
/// Training corpora: files of sentences, and the caches made of them.
mod data;
/// Requests: a row gives the same bits in any company, cached or not.
mod engine;
/// Recorded outputs of the published code, reproduced; and a wrong weight, found.
mod golden;
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
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
