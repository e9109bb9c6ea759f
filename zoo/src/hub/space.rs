//! Free space of a file system.

use std::path::Path;

/// Bytes that this user may still write where `folder` is or would be; `None` where the system does not say.
#[cfg(unix)]
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let there = folder.ancestors().find(|p| p.exists())?;
    let path = std::ffi::CString::new(there.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a value of this plain C struct of numbers.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a string that ends in zero, the answer a struct of our own; both outlive the call.
    let status = unsafe { libc::statvfs(path.as_ptr(), &mut answer) };
    #[allow(
        clippy::unnecessary_cast,
        clippy::useless_conversion,
        reason = "the fields' widths differ by platform"
    )]
    (status == 0).then(|| (answer.f_bavail as u64).saturating_mul(answer.f_frsize as u64))
}

#[cfg(not(unix))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(unix)]
    fn a_folder_to_be_made_has_the_space_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let free = super::free_bytes(&dir.path().join("not/yet")).unwrap();
        assert!(free > 0);
    }
}
