//! Lists of numbers: `1,16,512`, `64-256+64`, `1-64*2`.

use std::str::FromStr;

/// More are a slip of the pen.
const MOST: usize = 1000;

/// Numbers from 1, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(pub Vec<usize>);

impl FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let Some((first, rest)) = part.split_once('-') else {
                numbers.push(number(part)?);
                continue;
            };
            let (last, step) = match rest.find(['+', '*']) {
                Some(at) => (&rest[..at], &rest[at..]),
                None => (rest, "+1"),
            };
            let (mut at, last, by) = (number(first)?, number(last)?, number(&step[1..])?);
            if step == "*1" {
                return Err(format!("{part:?} never ends; multiply by 2 or more"));
            }
            if at > last {
                return Err(format!("{part:?} is empty: {at} is above {last}"));
            }
            while at <= last && numbers.len() <= MOST {
                numbers.push(at);
                at = if step.starts_with('*') { at.saturating_mul(by) } else { at.saturating_add(by) };
            }
        }
        match numbers.len() <= MOST {
            true => Ok(List(numbers)),
            false => Err(format!("more than {MOST} numbers")),
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    // so that products of a few of them can be computed
    let number = text.trim().parse().ok().filter(|n| (1..=1 << 24).contains(n));
    number.ok_or_else(|| {
        format!("{text:?} is not a number from 1 to {}; lists are like 1,16,512 or 64-256+64 or 1-64*2", 1 << 24)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        for (text, numbers) in [
            ("5", &[5][..]),
            ("1,16, 512", &[1, 16, 512]),
            ("1-4", &[1, 2, 3, 4]),
            ("64-256+64,1", &[64, 128, 192, 256, 1]),
            ("1-50*3", &[1, 3, 9, 27]),
            ("7-7", &[7]),
        ] {
            assert_eq!(text.parse(), Ok(List(numbers.to_vec())), "{text}");
        }
        for (text, part) in [
            ("", "\"\" is not a number"),
            ("0", "\"0\" is not a number"),
            ("1,,2", "1,16,512"),
            ("-3", "\"\" is not"),
            ("1-8*0", "\"0\" is not"),
            ("1-8*1", "never ends"),
            ("9-8", "is empty"),
            ("1-99999", "more than 1000"),
            ("x", "\"x\" is not"),
            ("99999999999999999999", "is not a number"),
        ] {
            let error = text.parse::<List>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
