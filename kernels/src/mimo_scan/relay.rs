//! Blocks of tokens on several threads.
//!
//! Nearly all work on a block, the products with B and C, waits for nobody. Only the scan between them needs the state
//! that the block before has left, and it is short: so threads take blocks in their order, and each hands the state on
//! to the next as soon as it has it, as runners do with a baton. Nothing is computed twice, and results do not depend on
//! the number of threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::host;

/// Turns that are taken in their order, in lanes that are independent of each other.
pub(super) struct Turns {
    lanes: Vec<AtomicUsize>,
    failed: AtomicBool,
}

impl Turns {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| AtomicUsize::new(0)).collect(), failed: AtomicBool::new(false) }
    }

    /// Runs `f` after all earlier turns of this lane. These must be in the hands of running threads, or done.
    ///
    /// # Panics
    /// If another task of the relay has.
    pub(super) fn take<R>(&self, lane: usize, turn: usize, f: impl FnOnce() -> R) -> R {
        /// Rounds of waiting before the core is given to other threads.
        const SPINS: usize = 10_000;
        let mut rounds = 0;
        while self.lanes[lane].load(Ordering::Acquire) != turn {
            assert!(!self.failed.load(Ordering::Relaxed), "another block's task panicked");
            rounds += 1;
            if rounds < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let result = f();
        self.lanes[lane].store(turn + 1, Ordering::Release);
        result
    }
}

/// Tells those who wait that their turn will not come.
struct Watch<'a>(&'a Turns);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// `f(i, buffers)` for each `i < n`, begun in this order; buffers are made once a thread.
pub(super) fn run<B: Send>(
    n: usize,
    turns: &[&Turns],
    new: impl Fn() -> B + Sync,
    f: impl Fn(usize, &mut B) + Sync,
) {
    let spare: Mutex<Vec<B>> = Mutex::default();
    host::parallel(n, |i| {
        let _watches: Vec<Watch> = turns.iter().map(|t| Watch(t)).collect();
        let free = spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffers = free.unwrap_or_else(&new);
        f(i, &mut buffers);
        spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_order() {
        let (turns, seen) = (Turns::new(2), Mutex::new(Vec::new()));
        run(200, &[&turns], || (), |i, ()| turns.take(i % 2, i / 2, || seen.lock().unwrap().push(i)));
        let seen = seen.into_inner().unwrap();
        let lane = |k| seen.iter().copied().filter(|i| i % 2 == k).collect::<Vec<_>>();
        assert_eq!(lane(0), (0..200).step_by(2).collect::<Vec<_>>());
        assert_eq!(lane(1), (1..200).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_nobody_waiting() {
        let turns = Turns::new(1);
        let all = || {
            run(
                50,
                &[&turns],
                || (),
                |i, ()| {
                    assert!(i != 7, "on purpose");
                    turns.take(0, i, || ());
                },
            );
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(all)).is_err());
    }
}
