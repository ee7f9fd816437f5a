//! How memory is divided.

use std::sync::OnceLock;

/// Bytes of the largest page of any supported kernel.
pub const LARGEST_PAGE_BYTES: usize = 65_536;

/// Bytes of a page: 4, 16 or 64 KiB.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        size.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
    })
}
