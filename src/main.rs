//! The flarelake program: everything is in the library.

use std::process::ExitCode;

// Decoding makes and drops large buffers on every thread; the system's allocator gives them back slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    flarelake::cli::main()
}
