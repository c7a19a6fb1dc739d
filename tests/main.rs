//! The one integration binary: a module per topic.

/// The `della` command, from its arguments to its exit code.
mod cli;
/// Recorded outputs of the published code, reproduced; and a wrong weight, found.
mod golden;
/// Weights from files, whole and damaged.
mod loaders;
/// Sampling: the published code's probabilities, and what holds for any logits.
mod sampling;
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
