//! `cargo bench --bench compare [-- --quick] [-- ROW...]`: millpond beside nginx and the reference
//! registry, in ratios within one run. What each figure means is in `benches/README.md`.

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
