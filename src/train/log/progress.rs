//! What is shown while a run runs: a bar on a terminal, now and then a line where the output is a file or a pipe.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Record;

/// Between two lines where there is no terminal.
pub const EVERY: Duration = Duration::from_secs(20);

/// Shows a run to whoever watches. That nobody can read it is no reason to stop.
pub struct Progress {
    show: Show,
    steps: u64,
    /// The step that this session began at, and when.
    from: (u64, Instant),
}

enum Show {
    Nothing,
    Bar(ProgressBar),
    Lines { every: Duration, out: Box<dyn Write + Send>, shown: Option<Instant>, waiting: Option<Record> },
}

impl Progress {
    /// On standard error: a bar if it is a terminal, else lines. The run has `steps` steps and goes on after `from`.
    pub fn stderr(steps: u64, from: u64) -> Self {
        if !stderr().is_terminal() {
            return Progress::lines(steps, from, EVERY, Box::new(stderr()));
        }
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
        let bar = ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(from);
        Progress { show: Show::Bar(bar), steps, from: (from, Instant::now()) }
    }

    /// A line to `out` for a record, but not sooner than `every` after the line before; the last record has one too.
    pub fn lines(steps: u64, from: u64, every: Duration, out: Box<dyn Write + Send>) -> Self {
        let show = Show::Lines { every, out, shown: None, waiting: None };
        Progress { show, steps, from: (from, Instant::now()) }
    }

    /// Nothing at all.
    pub fn none() -> Self {
        Progress { show: Show::Nothing, steps: 0, from: (0, Instant::now()) }
    }

    /// Moves the bar.
    pub fn step(&self, step: u64) {
        if let Show::Bar(bar) = &self.show {
            bar.set_position(step);
        }
    }

    /// Shows a record.
    pub fn record(&mut self, record: &Record) {
        let left = left(self.from.1.elapsed(), self.from.0, record.step, self.steps);
        match &mut self.show {
            Show::Nothing => {}
            Show::Bar(bar) => {
                bar.set_position(record.step);
                bar.set_message(format!("{} · {left}", short(record)));
            }
            Show::Lines { every, out, shown, waiting } => {
                if record.valid.is_empty() && shown.is_some_and(|shown| shown.elapsed() < *every) {
                    *waiting = Some(record.clone());
                    return;
                }
                (*shown, *waiting) = (Some(Instant::now()), None);
                let _ = writeln!(out, "{}, {left}", long(record, self.steps));
            }
        }
    }

    /// Shows a text, at once.
    pub fn say(&mut self, text: &str) {
        match &mut self.show {
            Show::Nothing => {}
            Show::Bar(bar) => bar.suspend(|| {
                let _ = writeln!(stderr(), "{text}");
            }),
            Show::Lines { out, .. } => {
                let _ = writeln!(out, "{text}");
            }
        }
    }

    /// Ends the display: the last record stays as a line.
    pub fn finish(self) {
        match self.show {
            Show::Nothing => {}
            Show::Bar(bar) => bar.abandon(),
            Show::Lines { mut out, waiting, .. } => {
                if let Some(record) = waiting {
                    let _ = writeln!(out, "{}", long(&record, self.steps));
                }
            }
        }
    }
}

/// Numbers beside a bar.
fn short(record: &Record) -> String {
    format!(
        "loss {:.3} = rec {:.3} + {:.2}·KL {:.2} {} · {} active · {} tokens/s",
        record.loss,
        record.rec,
        record.beta,
        record.kl,
        bars(&record.kl_layers),
        record.active_units.iter().sum::<usize>(),
        count(record.tokens_per_s)
    )
}

/// Numbers on a line.
fn long(record: &Record, steps: u64) -> String {
    let list = |values: Vec<String>| values.join(" ");
    let mut line = format!(
        "step {}/{steps}, epoch {:.2}, loss {:.4}, rec {:.4}, KL {:.3} [{}], active {} [{}], beta {:.3}, lr {:.1e}, \
         gradient {:.2}, {} tokens/s",
        record.step,
        record.epoch,
        record.loss,
        record.rec,
        record.kl,
        list(record.kl_layers.iter().map(|kl| format!("{kl:.2}")).collect()),
        record.active_units.iter().sum::<usize>(),
        list(record.active_units.iter().map(usize::to_string).collect()),
        record.beta,
        record.lr,
        record.grad_norm,
        count(record.tokens_per_s)
    );
    for (name, value) in &record.valid {
        line += &format!(", valid {name} {value:.4}");
    }
    line
}

/// A bar for each value, the largest being the highest.
fn bars(values: &[f64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let bar = |value: &f64| match value {
        value if !value.is_finite() => '?',
        value if largest > 0.0 => HEIGHTS[(value / largest * 7.0).round().clamp(0.0, 7.0) as usize],
        _ => HEIGHTS[0],
    };
    values.iter().map(bar).collect()
}

/// A count of at most five characters.
fn count(value: f64) -> String {
    match value {
        value if value >= 999_500.0 => format!("{:.1}M", value / 1e6),
        value if value >= 9_999.5 => format!("{:.0}k", value / 1e3),
        value if value >= 999.5 => format!("{:.1}k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// The time that the rest takes, if it goes as it went from `from` to `step`.
fn left(elapsed: Duration, from: u64, step: u64, steps: u64) -> String {
    let (done, rest) = (step.saturating_sub(from), steps.saturating_sub(step));
    if done == 0 {
        return "? left".into();
    }
    let seconds = (elapsed.as_secs_f64() / done as f64 * rest as f64).ceil() as u64;
    match seconds {
        0..=99 => format!("{seconds} s left"),
        100..=5999 => format!("{} min left", seconds.div_ceil(60)),
        _ => format!("{} h {:02} min left", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::record;
    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    pub struct Shown(Arc<Mutex<Vec<u8>>>);

    impl Shown {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_at_their_time() {
        let run = |every| {
            let shown = Shown::default();
            let mut progress = Progress::lines(9, 0, every, Box::new(shown.clone()));
            for step in 1..=4 {
                let mut record = record(step);
                if step != 3 {
                    record.valid.clear();
                }
                progress.record(&record);
            }
            progress.finish();
            let shown = shown.text();
            let steps = shown.lines().map(|line| line.split(['/', ' ']).nth(1).unwrap().parse().unwrap());
            steps.collect::<Vec<u64>>()
        };
        assert_eq!(run(Duration::ZERO), [1, 2, 3, 4]);
        assert_eq!(run(Duration::MAX), [1, 3, 4], "the first, the measured, the last");
    }

    #[test]
    fn records_have_all_their_numbers_on_a_line() {
        assert_eq!(
            long(&record(5), 10),
            "step 5/10, epoch 0.50, loss 3.5000, rec 3.0000, KL 2.000 [0.50 1.50], active 7 [3 4], beta 0.250, lr 1.0e-3, \
             gradient 0.75, 8.2k tokens/s, valid elbo -41.0000"
        );
        assert_eq!(short(&record(5)), "loss 3.500 = rec 3.000 + 0.25·KL 2.00 ▃█ · 7 active · 8.2k tokens/s");
    }

    #[test]
    fn bars_show_shares_of_the_largest() {
        assert_eq!(bars(&[0.0, 1.0, 3.5, 7.0]), "▁▂▅█");
        assert_eq!(bars(&[0.0, 0.0]), "▁▁");
        assert_eq!(bars(&[f64::NAN, -1.0, f64::INFINITY, 2.0]), "?▁?█");
        assert_eq!(bars(&[]), "");
    }

    #[test]
    fn counts_and_times_are_short() {
        let counts = [0.0, 999.4, 999.6, 8_249.0, 9_999.6, 123_456.0, 999_600.0, f64::NAN].map(count);
        assert_eq!(counts, ["0", "999", "1.0k", "8.2k", "10k", "123k", "1.0M", "NaN"]);
        let second = Duration::from_secs(1);
        assert_eq!(left(second, 5, 5, 10), "? left");
        assert_eq!(
            left(second * 10, 5, 10, 20),
            "20 s left",
            "what an earlier session did took none of this one's time"
        );
        assert_eq!(left(second, 0, 1, 200), "4 min left");
        assert_eq!(left(second, 0, 1, 7321), "2 h 02 min left");
        assert_eq!(left(second, 0, 12, 10), "0 s left");
    }
}
