//! The one integration binary: a module per topic.

/// Weights from files, whole and damaged.
mod loaders;
/// Sampling: the published code's probabilities, and what holds for any logits.
mod sampling;
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
