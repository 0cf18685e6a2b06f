//! `millpond client-config`: the README shows what it prints, on a terminal as in a pipe.
#![cfg(target_os = "linux")]

use std::process::{Command, Output, Stdio};

const README: &str = include_str!("../../README.md");

fn run(words: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_millpond"));
    program.args(words).output().unwrap()
}

/// The command lines that the README shows, without the program's name, and what it prints for each.
fn shown() -> Vec<(Vec<&'static str>, &'static str)> {
    let blocks = README
        .split("```console\n$ millpond client-config ")
        .skip(1);
    let read = |block: &'static str| {
        let (line, rest) = block.split_once('\n').unwrap();
        let (text, _) = rest.split_once("```").unwrap();
        let words = std::iter::once("client-config").chain(line.split(' '));
        (words.collect(), text)
    };
    blocks.map(read).collect()
}

#[test]
fn the_readme_shows_what_is_printed() {
    let mut clients = Vec::new();
    for (words, text) in shown() {
        let output = run(&words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text, "{words:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("next: "), "{words:?}: {told}");
        clients.push(words[1]);
    }
    let expected = ["docker", "containerd", "podman", "crio", "buildkit", "k3s"];
    assert_eq!(clients, expected);
}

/// What the program prints on a terminal, which util-linux's script makes for both of its outputs.
fn on_a_terminal(words: &[&str]) -> String {
    let line = format!("{} {}", env!("CARGO_BIN_EXE_millpond"), words.join(" "));
    let mut script = Command::new("script");
    let script = script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = script.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .replace("\r\n", "\n")
}

#[test]
fn a_terminal_gets_the_same_text_as_a_pipe() {
    for (words, _) in shown() {
        let output = run(&words);
        let piped = [output.stdout, output.stderr].concat();
        assert_eq!(
            on_a_terminal(&words),
            String::from_utf8(piped).unwrap(),
            "{words:?}"
        );
    }
}

#[test]
fn files_are_written_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let words = [
        "client-config",
        "docker",
        "--mirror=http://m.example:5000",
        "--write",
        root,
    ];
    let output = run(&words);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    let told = String::from_utf8(output.stderr).unwrap();
    let file = dir
        .path()
        .canonicalize()
        .unwrap()
        .join("etc/docker/daemon.json");
    assert!(
        told.starts_with(&format!("wrote {}\nnext: ", file.display())),
        "{told}"
    );
    assert_eq!(
        run(&words).stderr,
        b"nothing to change: the files have the mirror's entries\n"
    );
    assert!(run(&[&words[..], &["--undo"]].concat()).status.success());
    assert!(!file.exists());

    std::fs::write(&file, "{\n").unwrap();
    let output = run(&words);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with(&format!("millpond: {}:2: not valid JSON", file.display())),
        "{told}"
    );
}

#[test]
fn help_says_what_each_option_does() {
    let output = run(&["client-config", "--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [
        "docker:",
        "containerd:",
        "crio:",
        "podman:",
        "buildkit:",
        "k3s:",
        "rke2:",
        "--mirror <URL>",
        "--upstream <REGISTRY>",
        "--ca <FILE>",
        "--cert <FILE>",
        "--key <FILE>",
        "--write <DIR>",
        "--undo",
        "--config <FILE>",
        "[default: the upstreams of --config, else docker.io]",
        "[default: print what the files need]",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// Podman without root reads the file, too.
#[test]
fn files_are_readable_for_all_whatever_the_umask_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let script =
        "umask 077; exec \"$0\" client-config podman --mirror http://m.example --write \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_millpond")]);
    let output = shell.arg(root.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let file = root
        .path()
        .join("etc/containers/registries.conf.d/millpond.conf");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o644);
    assert_eq!(mode(file.parent().unwrap()), 0o755);
}
