//! Resident memory of this process, where the system tells.

/// Highest resident bytes since the start or the last [`reset_peak`].
pub(super) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Starts a new peak, where the system lets a process do that (Linux); elsewhere the peak stays that of the process.
pub(super) fn reset_peak() {
    semisep_kernels::return_freed_memory();
    // Failure leaves a peak that is too high, never too low.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The highest resident bytes of some work, without that of measurements in between.
#[derive(Default)]
pub(super) struct Peak(Option<u64>);

impl Peak {
    /// Begins.
    pub(super) fn start() -> Self {
        reset_peak();
        Self::default()
    }

    /// Runs what does not count.
    pub(super) fn without<T>(&mut self, measure: impl FnOnce() -> T) -> T {
        self.0 = self.0.max(peak());
        let result = measure();
        reset_peak();
        result
    }

    /// The bytes so far.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.0.max(peak())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_shows() {
        super::reset_peak();
        let before = super::peak().unwrap();
        let buffer = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(super::peak().unwrap() >= before + (48 << 20));
        drop(buffer);
        let mut peak = super::Peak::start();
        peak.without(|| drop(std::hint::black_box(vec![1u8; 256 << 20])));
        assert!(peak.bytes().unwrap() < before + (192 << 20));
    }
}
