//! Taking times, and what they are summed up to.

use std::time::{Duration, Instant};

use crate::error::Result;

/// Work that was prepared and whose result was checked; each call does it once.
pub type Job<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// A sample repeats shorter work up to about this time, so that the clock's own cost does not count.
const SAMPLE: Duration = Duration::from_millis(20);

/// Times of one job, each that of doing it once, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// By the clock on the wall.
    pub wall: Vec<f64>,
    /// By the clocks of all threads of this process together; empty where the system has none.
    pub cpu: Vec<f64>,
}

/// Takes `repetitions` samples of each job, all jobs in turn, so that a machine that grows slower does so for all of them.
///
/// # Errors
/// The first one of a job.
pub fn in_turn(jobs: &mut [Job<'_>], repetitions: usize) -> Result<Vec<Samples>> {
    let mut counts = Vec::with_capacity(jobs.len());
    for job in jobs.iter_mut() {
        let start = Instant::now();
        job()?;
        let once = start.elapsed().as_secs_f64().max(1e-9);
        counts.push((SAMPLE.as_secs_f64() / once).ceil().clamp(1.0, 1e6) as usize);
    }
    let mut samples = vec![Samples::default(); jobs.len()];
    for _ in 0..repetitions {
        for ((job, &count), samples) in jobs.iter_mut().zip(&counts).zip(&mut samples) {
            let (cpu, start) = (process_time(), Instant::now());
            for _ in 0..count {
                job()?;
            }
            let once = |time: Duration| time.as_secs_f64() * 1e9 / count as f64;
            samples.wall.push(once(start.elapsed()));
            samples.cpu.extend(cpu.zip(process_time()).map(|(before, after)| once(after.saturating_sub(before))));
        }
    }
    Ok(samples)
}

/// What all threads of this process have computed so far.
fn process_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }
    #[cfg(not(unix))]
    None
}

/// The middle one, or the mean of both; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 0) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        (middle, _) => sorted[middle],
    }
}

/// The median distance from the median.
pub fn deviation_from_median(values: &[f64]) -> f64 {
    let middle = median(values);
    median(&values.iter().map(|x| (x - middle).abs()).collect::<Vec<_>>())
}

/// The mean and the standard deviation, which is 0 of a single value.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let square: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (square / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        assert_eq!([median(&[3.0]), median(&[4.0, 1.0]), median(&[9.0, 1.0, 2.0])], [3.0, 2.5, 2.0]);
        assert!(median(&[]).is_nan());
        assert_eq!(deviation_from_median(&[1.0, 2.0, 4.0, 7.0, 100.0]), 3.0);
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn jobs_take_turns() {
        let order = std::cell::RefCell::new(Vec::new());
        let job = |name: usize| -> Job<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                std::thread::sleep(2 * SAMPLE);
                Ok(())
            })
        };
        let samples = in_turn(&mut [job(0), job(1)], 2).unwrap();
        assert_eq!(*order.borrow(), [0, 1, 0, 1, 0, 1]);
        assert!(samples.iter().all(|s| s.wall.len() == 2 && s.wall.iter().all(|&ns| ns >= 4e7)), "{samples:?}");
        assert!(!cfg!(unix) || samples.iter().all(|s| s.cpu.len() == 2));
        let failing: Job<'_> = Box::new(|| Err(crate::Error::Cancelled));
        assert!(in_turn(&mut [failing], 1).is_err());
    }
}
