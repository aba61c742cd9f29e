//! The flarelake program: everything is in the library.

use std::process::ExitCode;

// Decoding makes and drops large buffers on every thread; the system's allocator gives them back slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages double what an allocator of many small heaps holds, and gain nothing here. Without it we go on all the same.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(true);
    flarelake::cli::main()
}
