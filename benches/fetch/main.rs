//! `cargo bench --bench fetch [-- --quick]`: cold content through the real binary where the line, the
//! clients or the upstream make it hard, measured against the project's targets, as ratios within one
//! run. What each figure means is in `benches/README.md`.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::print_stderr, reason = "says why nothing is measured")]
fn main() {
    eprintln!("This bench reads /proc and discards bytes in the kernel: it needs Linux.");
}
