//! Measures on token sequences. An n-gram is one of the vocabulary's tokens: for Chinese a character, so BLEU is at the
//! level of characters, whatever words they make.

use std::collections::{BTreeMap, HashMap, HashSet};

/// The longest n-gram of BLEU.
const ORDER: usize = 4;

type Counts<'a> = HashMap<&'a [u32], usize>;

fn counts(ids: &[u32], n: usize) -> Counts<'_> {
    let mut counts = HashMap::new();
    for gram in ids.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// Corpus BLEU-4 of `(candidate, reference)` pairs, in [0, 1] (Papineni et al. 2002): with `p_n` the clipped matches over
/// all pairs divided by the candidates' n-grams, and `c`, `r` the tokens of all candidates and references,
/// `min(1, exp(1 − r/c)) · exp(¼ Σ_n log p_n)`. No smoothing: without a match of some length it is 0.
pub fn corpus_bleu<'a>(pairs: impl IntoIterator<Item = (&'a [u32], &'a [u32])>) -> f64 {
    let (mut matches, mut totals, mut candidates, mut references) = ([0; ORDER], [0; ORDER], 0, 0);
    for (candidate, reference) in pairs {
        candidates += candidate.len();
        references += reference.len();
        for n in 1..=ORDER {
            let available = counts(reference, n);
            let clipped = |(gram, &count): (&&[u32], &usize)| count.min(available.get(gram).copied().unwrap_or(0));
            matches[n - 1] += counts(candidate, n).iter().map(clipped).sum::<usize>();
            totals[n - 1] += (candidate.len() + 1).saturating_sub(n);
        }
    }
    if matches.contains(&0) {
        return 0.0;
    }
    let precisions = matches.iter().zip(&totals).map(|(&matched, &total)| matched as f64 / total as f64);
    brevity(candidates, references) * geometric_mean(precisions)
}

fn brevity(candidate: usize, reference: usize) -> f64 {
    (1.0 - reference as f64 / candidate as f64).min(0.0).exp()
}

fn geometric_mean(precisions: impl Iterator<Item = f64>) -> f64 {
    (precisions.map(f64::ln).sum::<f64>() / ORDER as f64).exp()
}

/// How often an n-gram occurs in the text that has most of it, and in any other.
#[derive(Clone, Copy, Default)]
struct Most {
    owner: usize,
    most: usize,
    second: usize,
}

/// Self-BLEU-4 in [0, 1] (Zhu et al. 2018): the mean over texts of the sentence BLEU of each with all others as its
/// references. High where texts repeat each other. As there, an n-gram length without a match counts a tenth of one
/// (Chen and Cherry 2014, method 1), but a text without any common token has 0; matches are clipped to the reference with
/// most of them; the reference length is the closest, the shorter of two. 0 for fewer than two texts.
pub fn self_bleu(texts: &[&[u32]]) -> f64 {
    if texts.len() < 2 {
        return 0.0;
    }
    let mut lengths = BTreeMap::new();
    for text in texts {
        *lengths.entry(text.len()).or_insert(0_usize) += 1;
    }
    let mut precisions = vec![[0.0; ORDER]; texts.len()];
    for n in 1..=ORDER {
        let all: Vec<Counts<'_>> = texts.iter().map(|text| counts(text, n)).collect();
        let mut most: HashMap<&[u32], Most> = HashMap::new();
        for (owner, counts) in all.iter().enumerate() {
            for (&gram, &count) in counts {
                let known = most.entry(gram).or_default();
                match count > known.most {
                    true => *known = Most { owner, most: count, second: known.most },
                    false => known.second = known.second.max(count),
                }
            }
        }
        for (i, counts) in all.iter().enumerate() {
            let of_others = |known: &Most| if known.owner == i { known.second } else { known.most };
            let matches: usize = counts.iter().map(|(gram, &count)| count.min(of_others(&most[gram]))).sum();
            let total = (texts[i].len() + 1).saturating_sub(n).max(1) as f64;
            precisions[i][n - 1] = if matches == 0 && n > 1 { 0.1 / total } else { matches as f64 / total };
        }
    }
    let sentence = |(text, precisions): (&&[u32], &[f64; ORDER])| {
        if precisions[0] == 0.0 {
            return 0.0;
        }
        let others = lengths.iter().filter(|(length, count)| **count > usize::from(**length == text.len()));
        let closest = others.map(|(length, _)| *length).min_by_key(|length| (length.abs_diff(text.len()), *length));
        brevity(text.len(), closest.unwrap_or(0)) * geometric_mean(precisions.iter().copied())
    };
    texts.iter().zip(&precisions).map(sentence).sum::<f64>() / texts.len() as f64
}

/// Distinct-n (Li et al. 2016): different n-grams, divided by all, over all texts together. 0 where there are none. It
/// falls with the number of texts: compare equal numbers only.
pub fn distinct(texts: &[&[u32]], n: usize) -> f64 {
    let all = || texts.iter().flat_map(|text| text.windows(n));
    match all().count() {
        0 => 0.0,
        total => all().collect::<HashSet<_>>().len() as f64 / total as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words as ids.
    fn ids(text: &str) -> Vec<u32> {
        text.split_whitespace()
            .map(|word| word.bytes().fold(7, |hash: u32, b| hash.wrapping_mul(31) ^ u32::from(b)))
            .collect()
    }

    fn bleu(pairs: &[(&str, &str)]) -> f64 {
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (ids(a), ids(b))).collect();
        corpus_bleu(pairs.iter().map(|(a, b)| (a.as_slice(), b.as_slice())))
    }

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-12, "{found} is not {wanted}");
    }

    #[test]
    fn bleu_by_hand() {
        close(bleu(&[("the cat sat on the mat", "the cat sat on the mat")]), 1.0);
        // 5 of 6, 3 of 5, 2 of 4, 1 of 3
        let same_length = (5.0 / 6.0 * 3.0 / 5.0 * 2.0 / 4.0 * 1.0 / 3.0_f64).powf(0.25);
        close(bleu(&[("the cat sat on a mat", "the cat sat on the mat")]), same_length);
        // all of 4, 3, 2, 1 match; two tokens are missing
        close(bleu(&[("the cat sat on", "the cat sat on the mat")]), (1.0 - 6.0 / 4.0_f64).exp());
        // Papineni et al. 2002, section 2.1: the matches of `the` are clipped; and none is longer
        assert_eq!(bleu(&[("the the the the the the the", "the cat is on the mat")]), 0.0);
        // a corpus sums matches before it divides: 7 of 8, 5 of 6, 3 of 4, 1 of 2; 8 tokens of 9
        let corpus = [("a b c d", "a b c d"), ("e f g x", "e f g h i")];
        let precisions = (7.0 / 8.0 * 5.0 / 6.0 * 3.0 / 4.0 * 1.0 / 2.0_f64).powf(0.25);
        close(bleu(&corpus), (1.0 - 9.0 / 8.0_f64).exp() * precisions);
        assert_eq!(bleu(&[]), 0.0);
    }

    /// Clipping counts: `a a b` has two a, the reference one.
    #[test]
    fn matches_are_clipped() {
        let pairs = [("a a b c d e", "a b c d e f")];
        // 5 of 6, 4 of 5, 3 of 4, 2 of 3
        close(bleu(&pairs), (5.0 / 6.0 * 4.0 / 5.0 * 3.0 / 4.0 * 2.0 / 3.0_f64).powf(0.25));
    }

    fn of<T>(texts: &[&str], measure: impl Fn(&[&[u32]]) -> T) -> T {
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| ids(text)).collect();
        measure(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn self_bleu_by_hand() {
        close(of(&["a b c d e", "a b c d e"], self_bleu), 1.0);
        assert_eq!(of(&["a b c", "d e f"], self_bleu), 0.0);
        assert_eq!(of(&["a b c"], self_bleu), 0.0);
        // a b c d e: 4 of 5 tokens, 3 of 4, 2 of 3, 1 of 2 in a b c d x; the same the other way round; the third
        // shares no token
        let pair = (4.0 / 5.0 * 3.0 / 4.0 * 2.0 / 3.0 * 1.0 / 2.0_f64).powf(0.25);
        close(of(&["a b c d e", "a b c d x", "q r s t u"], self_bleu), 2.0 * pair / 3.0);
        // a a b against {a b a: one bigram a b, a a a: one bigram a a}: 3 of 3, 2 of 2, 0.1 of 1, 0.1 of 1
        let first = (0.1 * 0.1_f64).powf(0.25);
        // a b a against {a a b, a a a}: a twice, b once: 3 of 3; a b: 1 of 2; 0.1 of 1 twice
        let second = (0.5 * 0.1 * 0.1_f64).powf(0.25);
        // a a a: clipped to two of 3; a a once of 2; 0.1 twice
        let third = (2.0 / 3.0 * 0.5 * 0.1 * 0.1_f64).powf(0.25);
        close(of(&["a a b", "a b a", "a a a"], self_bleu), (first + second + third) / 3.0);
    }

    /// The closest other length; of two as close the shorter.
    #[test]
    fn self_bleu_is_brief_for_short_texts() {
        let long = (4.0 / 6.0 * 3.0 / 5.0 * 2.0 / 4.0 * 1.0 / 3.0_f64).powf(0.25);
        close(of(&["a b c d", "a b c d e f"], self_bleu), ((1.0 - 6.0 / 4.0_f64).exp() + long) / 2.0);
    }

    #[test]
    fn distinct_by_hand() {
        let texts = ["a b a b", "a c"];
        close(of(&texts, |t| distinct(t, 1)), 3.0 / 6.0);
        // a b, b a, a b, a c
        close(of(&texts, |t| distinct(t, 2)), 3.0 / 4.0);
        assert_eq!(of(&texts, |t| distinct(t, 5)), 0.0);
    }
}
