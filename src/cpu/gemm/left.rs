//! What stands on the left of a product, arranged as the register tiles read it.

use std::ops::Range;

use super::integers::{Bytes, IntegersOf, Row, Shorts, Steps};
use crate::cpu::parallel::with_scratch;
use crate::cpu::simd::{Bf16Words, Form, Kernel, Simd, Token, Transpose, bf16_words_of, copy_row};

/// A matrix, from its first row and input on.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Rows are `stride` apart, inputs side by side.
    Rows { data: &'a [f32], stride: usize },
    /// Rows are side by side, inputs `stride` apart.
    Columns { data: &'a [f32], stride: usize },
}

/// Floats that a row takes for a word of `group` weights.
pub const fn floats_per_word(form: Form, group: usize) -> usize {
    match form {
        Form::Floats | Form::Integers => group,
        Form::Bf16 => 1,
        Form::Shorts => group / 2,
        Form::Bytes => group / 4,
    }
}

/// Floats that [`pack`] writes for `rows` rows and `words` words.
pub const fn packed_len(form: Form, group: usize, rows: usize, words: usize) -> usize {
    rows * (words * floats_per_word(form, group) + 2 * form.scaled() as usize)
}

/// Arranges `rows` of `x` word by word, row by row within a word; then the rows' scales and zeros, if they have any.
///
/// Integers are those of `x` times `balance`, which is empty or has all inputs. Beyond `inputs` the last word holds what
/// weights of zero may meet.
pub fn pack(
    token: Token,
    (form, group): (Form, usize),
    packed: &mut [f32],
    x: Left<'_>,
    rows: Range<usize>,
    inputs: Range<usize>,
    balance: &[f32],
) {
    let (count, width) = (rows.len(), inputs.len().div_ceil(group) * floats_per_word(form, group));
    let (packed, of_rows) = packed.split_at_mut(count * width);
    match x {
        Left::Columns { data, stride } => {
            let data = &data[rows.start..];
            token.run(PackColumns { form, group, packed, data, stride, rows: count, inputs });
        }
        Left::Rows { data, stride } if (form, group) == (Form::Floats, 1) => {
            let x = (data.get(rows.start * stride + inputs.start..).unwrap_or_default(), stride);
            token.run(Transpose { y: (packed, count), x, size: (count, width) });
        }
        Left::Rows { data, stride } => with_scratch(count * width, |converted| {
            for (r, row) in rows.enumerate() {
                let (x, converted) = (&data[row * stride..][inputs.clone()], &mut converted[r * width..][..width]);
                match form {
                    Form::Floats => {
                        converted[..x.len()].copy_from_slice(x);
                        converted[x.len()..].fill(0.0);
                    }
                    Form::Bf16 => token.run(Bf16Words { words: converted, x }),
                    Form::Integers | Form::Shorts | Form::Bytes => {
                        let row = Row { x, balance };
                        let integers = token.run(IntegersOf(row));
                        of_rows[r] = integers.scale;
                        of_rows[count + r] = if form == Form::Bytes { integers.zero } else { 0.0 };
                        match form {
                            Form::Bytes => token.run(Bytes { words: converted, row, integers, offset: 0.0 }),
                            Form::Shorts => token.run(Shorts { words: converted, row, integers }),
                            _ => {
                                token.run(Steps { y: &mut *converted, row, integers });
                                converted[x.len()..].fill(0.0);
                            }
                        }
                    }
                }
            }
            match floats_per_word(form, group) {
                1 => token.run(Transpose { y: (packed, count), x: (converted, width), size: (count, width) }),
                2 => scatter::<2>(packed, converted, count),
                4 => scatter::<4>(packed, converted, count),
                _ => scatter::<8>(packed, converted, count),
            }
        }),
    }
}

/// Puts the words of `rows` rows, of `N` floats each, row by row within a word.
fn scatter<const N: usize>(packed: &mut [f32], x: &[f32], rows: usize) {
    let (packed, x) = (packed.as_chunks_mut::<N>().0, x.as_chunks::<N>().0);
    for (r, row) in x.chunks_exact((x.len() / rows.max(1)).max(1)).enumerate() {
        for (slot, word) in packed[r..].iter_mut().step_by(rows).zip(row) {
            *slot = *word;
        }
    }
}

/// Rows that are packed at once where there are as many or fewer: a loop of a known length is one vector's.
const WHOLE: usize = 16;

/// [`pack`] where rows are side by side.
struct PackColumns<'a> {
    form: Form,
    group: usize,
    packed: &'a mut [f32],
    /// From the first row on.
    data: &'a [f32],
    stride: usize,
    rows: usize,
    inputs: Range<usize>,
}

impl Kernel for PackColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackColumns { form, group, packed, data, stride, rows, inputs } = self;
        if rows == 0 {
            return;
        }
        let column = |k: usize| if inputs.contains(&k) { &data[k * stride..][..rows] } else { &[] };
        match (form, group) {
            (Form::Floats, 1) => {
                for (k, packed) in inputs.clone().zip(packed.chunks_exact_mut(rows)) {
                    copy_row(s, packed, column(k), stride);
                }
            }
            (Form::Floats, 2) => {
                for (k, packed) in inputs.clone().step_by(2).zip(packed.chunks_exact_mut(2 * rows)) {
                    let (first, second) = (column(k), column(k + 1));
                    for (r, pair) in packed.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        *pair = [first[r], second.get(r).copied().unwrap_or(0.0)];
                    }
                }
            }
            (Form::Bf16, 2) => {
                for (k, word) in inputs.clone().step_by(2).zip((0..).step_by(rows)) {
                    let whole = |k: usize| data.get(k * stride..).and_then(|column| column.first_chunk::<WHOLE>());
                    let slots = &mut packed[word..];
                    match (whole(k), whole(k + 1), slots.first_chunk_mut::<WHOLE>()) {
                        // What is too much is overwritten by the next words.
                        (Some(lower), Some(upper), Some(slots)) if rows <= WHOLE && k + 1 < inputs.end => {
                            bf16_words_of(slots, lower, upper);
                        }
                        _ => bf16_words_of(&mut slots[..rows], column(k), column(k + 1)),
                    }
                }
            }
            _ => unreachable!("integer weights have no gradient"),
        }
    }
}
