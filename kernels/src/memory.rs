//! What the process does with memory that it has freed.

/// Lets this process keep up to two gigabytes of freed memory for its next tensors, instead of giving it back to the
/// system after every layer and fetching it again, page by page, for the next.
///
/// A layer's intermediates are some megabytes each, those of a long sequence some hundreds: larger than what the C
/// library's allocator keeps by itself. Fresh pages take up to a third of a prefill, and three quarters of a backward pass
/// through a long scan. This changes a setting of the whole process, which is why programs call it and no kernel does.
/// Only glibc has the setting: elsewhere nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const KEPT: libc::c_int = libc::c_int::MAX;
        // SAFETY: settings of the allocator, which may be changed at any time. A refusal changes nothing.
        unsafe {
            // None outside of the heap, whatever its size: the threshold for that cannot be raised beyond 32 MB.
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

/// Gives what [`keep_freed_memory`] has kept back to the system.
pub fn return_freed_memory() {
    // SAFETY: may be called at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}
