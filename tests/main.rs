//! The one integration binary: a module per topic.

/// Sampling: the published code's probabilities, and what holds for any logits.
mod sampling;
/// Tokenizer: Hugging Face's ids, decoding, streams, bad files.
mod text;
