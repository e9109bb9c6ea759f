//! What the process does with memory that it has freed.

/// Lets this process keep up to a gigabyte of freed memory for its next tensors, instead of giving it back to the
/// system after every layer and fetching it again, page by page, for the next.
///
/// A layer's intermediates are some megabytes each, larger than what the C library's allocator keeps by itself; fresh
/// pages take up to a third of a prefill. This changes a setting of the whole process, which is why programs call it
/// and no kernel does. Only glibc has the setting: elsewhere nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest that glibc accepts: what is larger is fetched from the system and given back at once.
        const MAPPED_FROM: libc::c_int = 32 << 20;
        const KEPT: libc::c_int = 1 << 30;
        // SAFETY: two thresholds of the allocator, which may be set at any time. A refusal changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}
