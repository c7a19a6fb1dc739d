//! Threads that wait for work with their eyes open.
//!
//! A decoded token is some eighty products of some tens of microseconds: a helper that sleeps between two of them wakes too
//! late to help. So helpers watch for [`SPIN`] before they sleep, and the caller never waits for one that has not begun.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// More threads than this are a slip of the pen.
pub const MAX_THREADS: usize = 1024;
/// How long a helper watches before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// Glances between two looks at the clock.
const GLANCES: usize = 64;

/// The calling thread and its helpers.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held by the caller whose work the helpers do.
    busy: Mutex<()>,
}

/// A piece of work, called with the numbers of the tasks that are left for a thread.
type Work<'a> = dyn Fn(&mut dyn Iterator<Item = usize>) + Sync + 'a;

struct Shared {
    /// Whether work can be joined ([`OPEN`]), how many helpers are at it (in the bits below), and how many works there were
    /// (in those above).
    state: AtomicU64,
    /// Valid while `state` is open or a helper is at it.
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// A share for each thread.
    shares: Vec<Share>,
    asleep: AtomicUsize,
    stop: AtomicBool,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Tasks of a thread, one behind the other, so that it passes over memory from front to back; those that are left when
/// another has none are done by that one. On a line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    /// The next task.
    next: AtomicUsize,
    /// Behind the last one.
    end: AtomicUsize,
}

const OPEN: u64 = 1 << 31;
const HELPERS: u64 = OPEN - 1;
const WORK: u64 = 1 << 32;

// SAFETY: `work` is written only by the caller that holds `busy` while no helper is at work, and read only by helpers that
// have joined, which `state` orders; it points to something `Sync`. All else is atomic or behind a lock.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer may be passed on as what it points to is `Sync`.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    ///
    /// # Errors
    /// None, or more than [`MAX_THREADS`]; the system refuses to start them.
    pub fn new(threads: usize) -> Result<Self> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::input(
                "threads",
                format!("{threads} threads cannot work; give at least 1 and at most {MAX_THREADS}"),
            ));
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, helpers: Vec::new(), busy: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let helper = thread::Builder::new().name(format!("della-cpu-{i}")).spawn(move || shared.help(i));
            // Those that did start are stopped as the pool is dropped.
            let failed = |e| Error::Unsupported(format!("cannot start {threads} threads: {e}"));
            pool.helpers.push(helper.map_err(failed)?);
        }
        Ok(pool)
    }

    /// Threads that work together.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(0)` to `task(tasks − 1)`, each once, in any order and on any thread, as [`share`](Self::share) does.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.share(tasks, |tasks| tasks.for_each(&task));
    }

    /// Calls `work` on each thread that finds a task to do, with the numbers of those that it is to do: of the numbers below
    /// `tasks` each is given out once.
    ///
    /// A second caller, and a task that calls this again, do all of their work themselves.
    ///
    /// # Panics
    /// If `work` does, once the other threads are done or have given up.
    pub fn share(&self, tasks: usize, work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync) {
        let helped = (tasks > 1 && !self.helpers.is_empty()).then(|| self.busy.try_lock().ok()).flatten();
        let Some(_busy) = helped else {
            return start(&work, 0..tasks);
        };
        let shared = &*self.shared;
        let pointer: *const Work<'_> = &work;
        // SAFETY: only the lifetime is dropped; `Closing` lets no helper be at work when `work` is.
        let pointer = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(pointer) };
        // SAFETY: no helper is at work: the last caller waited for that, and `busy` keeps others out.
        unsafe { *shared.work.get() = Some(pointer) };
        for (i, share) in shared.shares.iter().enumerate() {
            share.next.store(tasks * i / self.threads(), Ordering::Relaxed);
            share.end.store(tasks * (i + 1) / self.threads(), Ordering::Relaxed);
        }
        let works = shared.state.load(Ordering::Relaxed) / WORK;
        // Sequentially consistent, as a helper falls asleep in the same order: it looks here after it said so there.
        shared.state.store(works.wrapping_add(1).wrapping_mul(WORK) | OPEN, Ordering::SeqCst);
        let closing = Closing(shared);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.helpers.iter().take(tasks - 1).for_each(|helper| helper.thread().unpark());
        }
        start(&work, shared.tasks(0));
        drop(closing);
        let panic = shared.panic.lock().ok().and_then(|mut panic| panic.take());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Calls `work` with the tasks, if there are any.
fn start(work: &Work<'_>, mut tasks: impl Iterator<Item = usize>) {
    if let Some(first) = tasks.next() {
        work(&mut iter::once(first).chain(tasks));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // It catches what a task panics with.
            let _ = helper.join();
        }
    }
}

/// Lets no further helper join, and waits for those that did, also if the caller's own task panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        // Nothing is left to take, should the caller be panicking.
        self.0.shares.iter().for_each(|share| share.next.store(usize::MAX / 2, Ordering::Relaxed));
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut glances = 0;
        while self.0.state.load(Ordering::Acquire) & HELPERS != 0 {
            glances += 1;
            // The helper may need this very core.
            if glances % 1024 == 0 { thread::yield_now() } else { spin_loop() }
        }
    }
}

impl Shared {
    /// The tasks that are left when each is asked for, those of `thread` first.
    fn tasks(&self, thread: usize) -> impl Iterator<Item = usize> {
        let (before, from) = self.shares.split_at(thread);
        from.iter().chain(before).flat_map(|share| {
            let end = share.end.load(Ordering::Relaxed);
            iter::repeat_with(|| share.next.fetch_add(1, Ordering::Relaxed)).take_while(move |task| *task < end)
        })
    }

    /// The life of helper `thread`.
    fn help(&self, thread: usize) {
        let mut done = 0;
        while let Some(state) = self.watch(done) {
            // Another helper may have changed the count meanwhile, or the caller has closed.
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            done = state / WORK;
            // SAFETY: this helper has joined, so the caller's `Closing` waits, and `work` stays as it is and what it points
            // to alive.
            let work = unsafe { (*self.work.get()).map(|work| &*work) };
            if let Err(panic) =
                catch_unwind(AssertUnwindSafe(|| work.into_iter().for_each(|work| start(work, self.tasks(thread)))))
                && let Ok(mut slot) = self.panic.lock()
            {
                *slot = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for open work other than number `done`; `None` if the pool stops.
    fn watch(&self, done: u64) -> Option<u64> {
        let look = || Some(self.state.load(Ordering::SeqCst)).filter(|s| s & OPEN != 0 && s / WORK != done);
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                for _ in 0..GLANCES {
                    if let Some(state) = look() {
                        return Some(state);
                    }
                    spin_loop();
                }
            }
            self.asleep.fetch_add(1, Ordering::SeqCst);
            // Work that was opened before it said so would not wake it.
            let found = look();
            if found.is_none() && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if found.is_some() {
                return found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each task is done once, whatever the pace: at once, after the helpers fell asleep, from several callers, nested.
    #[test]
    fn every_task_is_done_once() {
        let pool = Pool::new(4).unwrap();
        let round = |tasks: usize| {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
                if i == 0 {
                    pool.run(3, |_| {});
                }
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        };
        for i in 0..2000 {
            round(i % 9);
            if i % 500 == 0 {
                thread::sleep(3 * SPIN);
            }
        }
        thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(|| (0..500).for_each(round))));
        });
    }

    /// A thread is called once at most, and never for nothing; what one does not take is left to the others.
    #[test]
    fn work_is_shared() {
        let pool = Pool::new(4).unwrap();
        for tasks in [0, 1, 3, 4, 100] {
            let (calls, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
            pool.share(tasks, |tasks| {
                calls.fetch_add(1, Ordering::Relaxed);
                let mine: Vec<_> = tasks.collect();
                assert!(!mine.is_empty());
                done.lock().unwrap().extend(mine);
            });
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert!(done.into_iter().eq(0..tasks));
            assert!(calls.into_inner() <= tasks.min(4));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..20 {
            let run = || pool.run(20, |i| assert!(i != bad, "task {i}"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("task"));
            let sum = AtomicUsize::new(0);
            pool.run(20, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 190);
        }
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        for threads in [0, MAX_THREADS + 1, usize::MAX] {
            let message = Pool::new(threads).err().unwrap().to_string();
            assert!(message.contains(&format!("{threads} threads")) && message.contains("at most 1024"), "{message}");
        }
    }
}
