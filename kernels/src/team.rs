//! The kernels' threads: they wait for work spinning, and nobody waits for them.
//!
//! One token of a small model is a hundred short regions of work, each too short to wake a sleeping thread for. So
//! helpers stay awake for a moment after a region and look for the next one. The caller starts at once, alone; a helper
//! that is awake joins in; when the work is used up the caller closes the door and waits only for helpers inside. On a
//! machine that is busy with other things a region is thus never slower than on the caller's own thread, give or take
//! one share of the work, whereas a barrier would wait for every thread to be scheduled.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::Thread;

/// Work that any number of threads can do together: each takes pieces until none is left.
type Work<'a> = dyn Fn() + Sync + 'a;

/// Rounds that a helper spins for the next region, at first without giving its core to others; in all some hundred
/// microseconds.
const AWAKE: u32 = 4_000;
const YIELDING: u32 = 300;

/// The low bits of the state count the helpers inside; above them lies the door, then the number of the region.
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const REGION: u32 = 17;

struct Team {
    /// Held by the caller whose region it is.
    turn: Mutex<()>,
    state: AtomicU64,
    work: UnsafeCell<*const Work<'static>>,
    panicked: AtomicBool,
    helpers: OnceLock<Vec<Helper>>,
}

struct Helper {
    thread: Thread,
    asleep: &'static AtomicBool,
}

// SAFETY: `work` is written by the caller that holds `turn`, while the door is closed and no helper is inside, and read
// by helpers that are inside.
unsafe impl Sync for Team {}
// SAFETY: the pointer is only followed as told above.
unsafe impl Send for Team {}

/// Calls `work` on this thread and at the same time on every helper that is there to join; returns when all of them
/// have returned. Where another thread has the helpers, on this thread alone.
pub(crate) fn together(work: &Work) {
    let team = team();
    let helpers = team.helpers.get().map_or(&[][..], Vec::as_slice);
    let _turn = match team.turn.try_lock() {
        Ok(turn) => turn,
        // A caller's own panic leaves nothing behind: its region was closed on the way out.
        Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        Err(TryLockError::WouldBlock) => return work(),
    };
    if helpers.is_empty() {
        return work();
    }
    team.panicked.store(false, Ordering::Relaxed);
    // SAFETY: only the lifetime changes; helpers use the pointer between the opening of the door and the end of
    // `Region::drop`, both inside this function. The turn is this thread's, the door is closed, nobody is inside.
    unsafe { *team.work.get() = std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
    let region = (team.state.load(Ordering::Relaxed) >> REGION) + 1;
    // Sequentially consistent, as are a helper's last look and its going to sleep: one of the two sees the other.
    team.state.store(region << REGION | OPEN, Ordering::SeqCst);
    let region = Region(team);
    for helper in helpers {
        if helper.asleep.load(Ordering::SeqCst) {
            helper.thread.unpark();
        }
    }
    work();
    drop(region);
    assert!(!team.panicked.load(Ordering::Relaxed), "a helper thread panicked");
}

/// An open region; closed, and left by all helpers, when dropped.
struct Region<'a>(&'a Team);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        let mut inside = self.0.state.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE;
        let mut round = 0;
        while inside > 0 {
            wait(&mut round);
            inside = self.0.state.load(Ordering::Acquire) & INSIDE;
        }
    }
}

/// One round of waiting: spins, and after a while gives the core to other threads.
fn wait(round: &mut u32) {
    *round = round.saturating_add(1);
    if *round < AWAKE { std::hint::spin_loop() } else { std::thread::yield_now() }
}

fn team() -> &'static Team {
    static TEAM: Team = Team {
        turn: Mutex::new(()),
        state: AtomicU64::new(0),
        work: UnsafeCell::new(&|| ()),
        panicked: AtomicBool::new(false),
        helpers: OnceLock::new(),
    };
    TEAM.helpers.get_or_init(|| (1..crate::host::all_threads()).filter_map(|i| spawn(&TEAM, i)).collect());
    &TEAM
}

/// A helper, unless the system has no thread left for it.
fn spawn(team: &'static Team, index: usize) -> Option<Helper> {
    let asleep: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let run = move || {
        candle_core::utils::set_thread_affinity();
        help(team, index, asleep)
    };
    let handle = std::thread::Builder::new().name(format!("semisep-{index}")).spawn(run).ok()?;
    Some(Helper { thread: handle.thread().clone(), asleep })
}

fn help(team: &Team, index: usize, asleep: &AtomicBool) -> ! {
    let (mut seen, mut round) = (0, 0);
    loop {
        let state = team.state.load(Ordering::Acquire);
        let region = state >> REGION;
        let joins = state & OPEN != 0 && region != seen && index < crate::host::threads();
        if joins && team.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            seen = region;
            // SAFETY: inside, as counted by the exchange, the work is valid.
            let work = unsafe { &**team.work.get() };
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                team.panicked.store(true, Ordering::Relaxed);
            }
            team.state.fetch_sub(1, Ordering::Release);
            round = 0;
        } else if round < AWAKE + YIELDING {
            wait(&mut round);
        } else {
            asleep.store(true, Ordering::SeqCst);
            let state = team.state.load(Ordering::SeqCst);
            if state & OPEN == 0 || state >> REGION == seen || index >= crate::host::threads() {
                std::thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
            round = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Sums 0..n by single steps of a shared cursor.
    fn sum(n: usize) -> usize {
        let (cursor, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        together(&|| {
            loop {
                let i = cursor.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return;
                }
                sum.fetch_add(i, Ordering::Relaxed);
            }
        });
        sum.into_inner()
    }

    #[test]
    fn all_work_is_done_in_every_region() {
        for n in (0..20_000).map(|i| i % 7) {
            assert_eq!(sum(n), n * n.saturating_sub(1) / 2);
        }
        // Long enough for helpers to have gone to sleep.
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            assert_eq!(sum(100_000), 4_999_950_000);
        }
    }

    #[test]
    fn regions_inside_regions_and_on_many_threads() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        together(&|| assert_eq!(sum(50), 1225));
                    }
                });
            }
        });
    }

    /// Everyone who takes part panics, the caller among them; the team works on.
    #[test]
    fn panics_reach_the_caller() {
        for _ in 0..20 {
            assert!(catch_unwind(|| together(&|| panic!("on purpose"))).is_err());
        }
        assert_eq!(sum(10), 45);
    }
}
