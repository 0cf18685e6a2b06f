//! `benches/instructions/run [--bless]`: how many instructions one warm request takes the server,
//! counted by valgrind's callgrind, compared with the baseline in this directory. Such counts don't
//! depend on how busy the machine is. What they cover is in `benches/README.md`.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<std::process::ExitCode> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::print_stderr, reason = "says why nothing is counted")]
fn main() {
    eprintln!("Instructions are counted on Linux.");
}
