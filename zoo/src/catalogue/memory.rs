//! Memory that a program started now may use.

use std::path::Path;

/// Bytes that are free without swapping, and within the limits of the control groups this process is in; `None` where the
/// system does not say.
pub fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let free = available(&info)?;
    let groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"].map(Path::new);
    Some(groups.into_iter().filter_map(left_in_group).fold(free, u64::min))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// What a group's limit leaves: version 2's files, or version 1's. No limit is a word, or a number beyond all memory.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let pairs = [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")];
    pairs.into_iter().find_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_system() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:      2 kB\n"), Some(2048));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(left_in_group(dir.path()), None);
        std::fs::write(dir.path().join("memory.current"), "30\n").unwrap();
        std::fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(left_in_group(dir.path()), None);
        std::fs::write(dir.path().join("memory.max"), "100\n").unwrap();
        assert_eq!(left_in_group(dir.path()), Some(70));
        #[cfg(target_os = "linux")]
        assert!(available_bytes().unwrap() > 0);
    }
}
