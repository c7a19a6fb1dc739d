//! What four bits of a weight stand for.

/// Sixteen bytes that leave the least squared error (Lloyd's algorithm, zero among them) of normally distributed weights,
/// [`INPUTS_PER_FACTOR`] at a time, whose largest is 127: 0.0776 of their rms, where NF4 (arXiv 2305.14314, appendix E)
/// leaves 0.084. Zero is the first, so that words of zeros are weights of zero.
pub const CODES: [i8; 16] = [0, 10, 21, 34, 47, 62, 79, 100, 127, -123, -92, -72, -55, -40, -26, -13];

/// Inputs of an output whose weights are multiplied with the same factor.
pub const INPUTS_PER_FACTOR: usize = 32;

/// [`CODES`] as f32.
pub const CODE_VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < values.len() {
        values[i] = CODES[i] as f32;
        i += 1;
    }
    values
};
