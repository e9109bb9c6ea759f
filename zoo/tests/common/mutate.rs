//! Damaged inputs by the thousand, and what a reader makes of them: time, memory, and no panic.
#![allow(unreachable_pub, reason = "a module of tests")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use semisep_core::Rng;
use tempfile::TempDir;

/// Counts the bytes that the current thread holds.
pub struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may free after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it is; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// The most bytes that `work` held at once on this thread, beyond what was there.
fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, usize::try_from(MOST.get() - before).unwrap_or(0))
}

/// Inputs a reader is given: a few thousand, or `SEMISEP_MUTATIONS`.
pub fn mutations() -> usize {
    let wanted = std::env::var("SEMISEP_MUTATIONS").ok();
    wanted.map_or(5000, |n| n.parse().unwrap())
}

/// A folder in memory, where there is one.
pub fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A new file: truncating one that is there makes some file systems write it to disk first.
pub fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

/// One to four changes: a bit, a byte, a run of bytes cut or doubled, the end cut off, numbers of interest, words that
/// mean something to one of the readers. Three quarters of them within the first `head` bytes.
pub fn mutate(original: &[u8], head: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=rng.below(4) {
        let span = if rng.below(4) == 0 { bytes.len() } else { head.min(bytes.len()) };
        let at = rng.below(span.max(1));
        if at >= bytes.len() {
            continue;
        }
        match rng.below(9) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + 1 + rng.below(16)).min(bytes.len()))),
            4 => {
                let run = bytes[at..(at + 1 + rng.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, run);
            }
            5 => {
                let big = [u64::MAX, 1 << 63, 1 << 40, u64::from(u32::MAX), 0][rng.below(5)].to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&big[..end - at]);
            }
            6 => number(&mut bytes, at, rng),
            7 => {
                let words: [&[u8]; 12] = [
                    b"null",
                    b"true",
                    b"[]",
                    b"{}",
                    b"\"\"",
                    b"../../x",
                    b"/etc/passwd",
                    b"\\u0000",
                    b"NaN",
                    b"[[",
                    b"{\"a\":{",
                    b"-",
                ];
                let word = words[rng.below(words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                // A digit or an opcode for another.
                let pool = b"0123456789-e{}[]\",:().tRQcXqhus\x85\x86\x87\x88\x8a\x93\x94";
                bytes[at] = pool[rng.below(pool.len())];
            }
        }
    }
    bytes
}

/// Another number for the next one in the text.
fn number(bytes: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |i| start + i);
    let odd = [
        "0",
        "1",
        "-1",
        "7",
        "65",
        "1.5",
        "1e18",
        "1e400",
        "16777216",
        "16777215",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "340282366920938463463374607431768211456",
    ];
    bytes.splice(start..end, odd[rng.below(odd.len())].bytes());
}

/// Gives a reader damaged inputs, beginning with the original, which it must accept. `read` gets the input and says
/// whether it was accepted. At least an eighth are to be refused, or the damage does not reach what is read.
pub fn run(name: &str, original: &[u8], head: usize, bound: usize, read: impl Fn(&[u8]) -> bool) {
    assert!(read(original), "{name}: the original is readable");
    // With RUST_BACKTRACE the first error of candle loads the symbols of the program, which stay.
    drop(candle_core::Error::msg("symbols").bt().to_string());
    let (mut rng, all) = (Rng::named(1, name), mutations());
    let (mut refused, mut slowest, mut largest) = (0, Duration::ZERO, 0);
    for i in 0..all {
        let input = mutate(original, head, &mut rng);
        let begin = Instant::now();
        let (outcome, held) = most_held(|| catch_unwind(AssertUnwindSafe(|| read(&input))));
        let shown = || String::from_utf8_lossy(&input[..input.len().min(4000)]).into_owned();
        match outcome {
            Ok(accepted) => refused += usize::from(!accepted),
            Err(_) => panic!("{name}: input {i} made the reader panic: {}", shown()),
        }
        slowest = slowest.max(begin.elapsed());
        largest = largest.max(held);
        assert!(held <= bound, "{name}: input {i} made it hold {held} bytes: {}", shown());
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}: input {i} took too long: {}", shown());
    }
    println!("{name}: {all} inputs, {refused} refused, at most {largest} bytes held, slowest {slowest:?}");
    assert!(refused > all / 8, "{name}: only {refused} of {all} were refused");
}

/// As [`run`], for a reader of the file `name` in a folder.
pub fn run_file(folder: &Path, name: &str, head: Option<usize>, bound: usize, read: impl Fn(&Path) -> bool) {
    let path: PathBuf = folder.join(name);
    let original = std::fs::read(&path).unwrap();
    run(name, &original, head.unwrap_or(original.len()), bound, |input| {
        replace(&path, input);
        read(folder)
    });
    replace(&path, &original);
}
