//! The one integration binary: a module per topic.

/// Requests: a row gives the same bits in any company, cached or not.
mod engine;
/// Weights from files, whole and damaged.
mod loaders;
/// Sampling: the published code's probabilities, and what holds for any logits.
mod sampling;
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
