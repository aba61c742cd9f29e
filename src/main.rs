//! The flarelake program: everything is in the library.

use std::process::ExitCode;

// Decoding makes and drops large buffers on every thread; the system's allocator gives them back slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's `mi_option_purge_delay`, which its bindings have no name for: so their version is pinned.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// How long it keeps what was freed, in milliseconds. By default that is a second, in which a batch or a
/// merge frees as much as it holds: half of what the process had was of no use. Less than this costs more
/// time than it spares memory.
const KEEP_MS: std::ffi::c_long = 100;

fn main() -> ExitCode {
    // What the environment says (MIMALLOC_PURGE_DELAY) goes first.
    // SAFETY: no other thread is there yet, which is all that it asks for.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEEP_MS);
    }
    // Huge pages double what an allocator of many small heaps holds, and gain nothing here. Without it we go
    // on all the same.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(true);
    flarelake::cli::main()
}
