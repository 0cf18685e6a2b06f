//! `cargo bench --bench compare [-- --quick] [-- ROW...]`: the real program beside nginx and the reference
//! registry, and beside pulls straight from the upstream, in ratios within one run.
//! `benches/instructions/run`: how many instructions one warm request takes it. What each figure means is
//! in `benches/README.md`.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<std::process::ExitCode> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::print_stderr, reason = "says why nothing is measured")]
fn main() {
    eprintln!("This bench reads /proc and discards bytes in the kernel: it needs Linux.");
}
