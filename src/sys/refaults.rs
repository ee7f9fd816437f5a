//! How often the kernel dropped a file's page too early.

use super::capabilities::Capabilities;
use std::fs;

/// Pages of files that were read again soon after the kernel had dropped them, since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refaults {
    /// The count.
    pub pages: u64,
    /// Whose pages: "cgroup" or "system".
    pub scope: &'static str,
}

/// The count of this process's memory cgroup (`workingset_refault_file` of its memory.stat), else
/// of the whole system (the same field of proc_vmstat(5)); kernels before 5.9 have it as
/// `workingset_refault`. `None` where the kernel tells neither.
pub fn refaults() -> Option<Refaults> {
    let own = Capabilities::get().memory_cgroup().and_then(|group| field(&group.stat()?));
    let system = || field(&fs::read_to_string("/proc/vmstat").ok()?);
    own.map(|pages| Refaults { pages, scope: "cgroup" })
        .or_else(|| system().map(|pages| Refaults { pages, scope: "system" }))
}

fn field(text: &str) -> Option<u64> {
    let find = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        text.lines().find_map(value)
    };
    find("workingset_refault_file").or_else(|| find("workingset_refault"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_has_two_names() {
        let check = |text: &str, expected| assert_eq!(field(text), expected, "{text}");
        check("anon 5\nworkingset_refault_anon 1\nworkingset_refault_file 7\n", Some(7));
        check("workingset_refault 9\nworkingset_activate 3\n", Some(9));
        check("workingset_refault_file x\n", None);
        check("", None);
    }
}
