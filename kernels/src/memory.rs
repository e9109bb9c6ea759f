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

/// Asks for large pages behind a buffer that has not been written yet: a model's weights are millions of small pages, and
/// handing those out takes longer than reading the weights. Elsewhere than on Linux nothing happens.
pub fn use_huge_pages<T>(buffer: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let bytes = buffer.as_mut_ptr_range();
        let (start, end) = ((bytes.start as usize).next_multiple_of(PAGE), bytes.end as usize / PAGE * PAGE);
        if start < end {
            // SAFETY: whole pages inside of the buffer, whose contents the advice does not change. A refusal costs time only.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
}
