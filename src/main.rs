//! The `millpond` program.

fn main() -> std::process::ExitCode {
    millpond::cli::run(std::env::args_os())
}
