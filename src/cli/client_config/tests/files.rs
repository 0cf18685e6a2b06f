//! The files themselves: made, restored, removed; and what can't be written.

use std::os::unix::fs::symlink;

use super::*;

const DOCKER: &str = "docker --mirror http://m.example:5000";
const DAEMON_JSON: &str = "etc/docker/daemon.json";

#[test]
fn what_did_not_exist_is_removed_again() {
    for client in CLIENTS {
        for (_, way) in WAYS {
            let machine = Machine::new();
            let line = format!("{client} {way}");
            machine.write(&line).unwrap();
            let written = machine.snapshot();
            assert!(!written.is_empty(), "{line}");
            let is_key = |path: &Path| path.extension().is_some_and(|ending| ending == "key");
            for (path, mode, text) in &written {
                let (expected, label) = if is_key(path) {
                    (0o600, KEY)
                } else {
                    (0o644, "")
                };
                assert_eq!(mode & 0o777, expected, "{}", path.display());
                assert!(label.is_empty() || text == label, "{}", path.display());
            }
            assert_eq!(
                machine.write(&line),
                Ok(Vec::new()),
                "{line}: changed twice"
            );
            assert_eq!(machine.snapshot(), written, "{line}");
            assert_eq!(machine.undo(&line).unwrap().len(), written.len(), "{line}");
            assert_eq!(machine.snapshot(), [], "{line}");
            assert!(
                !machine.path("etc/containerd/certs.d/docker.io").exists(),
                "{line}"
            );
        }
    }
}

#[test]
fn a_changed_file_of_ours_keeps_what_was_added() {
    let machine = Machine::new();
    machine.write(DOCKER).unwrap();
    let text = machine
        .text(DAEMON_JSON)
        .replace("{\n", "{\n  \"debug\": true,\n");
    machine.put(DAEMON_JSON, &text);
    let told = machine.undo(DOCKER).unwrap();
    let expected =
        "removed the mirror's entries from ROOT/etc/docker/daemon.json, which has other changes";
    assert_eq!(told, [expected]);
    assert_eq!(machine.text(DAEMON_JSON), "{\n  \"debug\": true\n}\n");
}

#[test]
fn a_replaced_certificate_is_left_alone() {
    let machine = Machine::new();
    let line = "podman --mirror https://m.example:5000 --ca CA";
    machine.write(line).unwrap();
    let path = "etc/containers/certs.d/m.example:5000/ca.crt";
    machine.put(path, "another");
    machine.undo(line).unwrap();
    assert_eq!(machine.text(path), "another");
    // One that was there before comes back.
    machine.write(line).unwrap();
    assert_eq!(machine.text(path), CERTIFICATE);
    machine.undo(line).unwrap();
    assert_eq!(machine.text(path), "another");
}

#[test]
fn the_backup_is_of_the_file_before_the_mirror() {
    let machine = Machine::new();
    machine.put(DAEMON_JSON, "{}\n");
    machine.write(DOCKER).unwrap();
    machine
        .write(&format!("{DOCKER} --upstream docker.io --upstream ghcr.io"))
        .unwrap();
    assert_eq!(
        machine.text("etc/docker/daemon.json.millpond-backup"),
        "{}\n"
    );
    // Without the entries the backup is of another time.
    machine.put(DAEMON_JSON, "{\"debug\": true}\n");
    machine.write(DOCKER).unwrap();
    machine.undo(DOCKER).unwrap();
    assert_eq!(machine.text(DAEMON_JSON), "{\"debug\": true}\n");
}

#[test]
fn another_address_leaves_the_first_backup() {
    let machine = Machine::new();
    let path = "etc/rancher/k3s/registries.yaml";
    machine.put(path, "# ours\nmirrors:\n  a.example: {endpoint: [b]}\n");
    let first = machine.snapshot();
    let (old, new) = (
        "k3s --mirror http://m.example:5000",
        "k3s --mirror https://m.example",
    );
    machine.write(old).unwrap();
    let between = machine.text(path);
    machine.write(new).unwrap();
    machine.undo(new).unwrap();
    assert_eq!(machine.text(path), between);
    machine.undo(old).unwrap();
    assert_eq!(machine.snapshot(), first);
}

#[test]
fn comments_that_were_added_since_are_in_a_backup() {
    let machine = Machine::new();
    let path = "etc/rancher/k3s/registries.yaml";
    let line = "k3s --mirror http://m.example:5000";
    machine.put(path, "mirrors: {}\n");
    machine.write(line).unwrap();
    let commented = format!("# mine\n{}", machine.text(path));
    machine.put(path, &commented);
    let more = format!("{line} --upstream docker.io --upstream ghcr.io");
    let told = machine.write(&more).unwrap();
    let backup = "etc/rancher/k3s/registries.yaml.millpond-backup.2";
    let expected = format!(
        "wrote ROOT/{path}, backup in ROOT/{backup}, which has the comments; the new file has none"
    );
    assert_eq!(told, [expected]);
    assert_eq!(machine.text(backup), commented);
    assert_eq!(
        machine.text(&format!("{path}.millpond-backup")),
        "mirrors: {}\n"
    );
    machine.undo(&more).unwrap();
    assert_eq!(machine.text(path), "mirrors: {}\n");
}

#[test]
fn a_file_that_was_made_anew_is_removed_in_spite_of_an_old_backup() {
    let machine = Machine::new();
    machine.put(DAEMON_JSON, "{\"debug\": true}\n");
    machine.write(DOCKER).unwrap();
    fs::remove_file(machine.path(DAEMON_JSON)).unwrap();
    machine.write(DOCKER).unwrap();
    machine.undo(DOCKER).unwrap();
    assert!(!machine.path(DAEMON_JSON).exists());
}

#[test]
fn a_key_is_never_readable_for_all() {
    let machine = Machine::new();
    let path = "etc/containers/certs.d/m.example/client.key";
    machine.put(path, "an older key");
    fs::set_permissions(machine.path(path), fs::Permissions::from_mode(0o644)).unwrap();
    machine
        .write("podman --mirror https://m.example --cert CERT --key KEY")
        .unwrap();
    assert_eq!(machine.text(path), KEY);
    let mode = machine.path(path).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn a_folder_of_hosts_goes_with_its_file_whatever_its_parent_is_called() {
    let machine = Machine::new();
    let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
                  config_path = \"/srv/hosts\"\n";
    machine.put("etc/containerd/config.toml", config);
    let line = "containerd --mirror http://m.example:5000";
    machine.write(line).unwrap();
    machine.undo(line).unwrap();
    assert!(machine.path("srv/hosts").exists());
    assert!(!machine.path("srv/hosts/docker.io").exists());
}

#[test]
fn the_file_behind_a_symbolic_link_is_changed() {
    let machine = Machine::new();
    machine.put("srv/daemon.json", "{}\n");
    fs::create_dir_all(machine.path("etc/docker")).unwrap();
    symlink("../../srv/daemon.json", machine.path(DAEMON_JSON)).unwrap();
    machine.write(DOCKER).unwrap();
    assert!(machine.path(DAEMON_JSON).is_symlink());
    assert!(machine.text("srv/daemon.json").contains("m.example"));
    machine.undo(DOCKER).unwrap();
    assert_eq!(machine.text("srv/daemon.json"), "{}\n");
}

#[test]
fn links_out_of_the_root_and_to_nothing_are_refused() {
    let machine = Machine::new();
    let outside = machine.0.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(machine.path("etc")).unwrap();
    symlink(&outside, machine.path("etc/docker")).unwrap();
    let told = machine.write(DOCKER).unwrap_err();
    assert_eq!(told, "ROOT/etc/docker: the symbolic link leads out of ROOT");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    fs::remove_file(machine.path("etc/docker")).unwrap();
    symlink("nowhere", machine.path("etc/docker")).unwrap();
    let told = machine.write(DOCKER).unwrap_err();
    assert!(
        told.starts_with("ROOT/etc/docker: the symbolic link can't be followed"),
        "{told}"
    );
}

#[test]
fn a_file_that_cannot_be_written_leaves_all_others_as_they_were() {
    let machine = Machine::new();
    // The certificate would be written first; the directory of the other file is a file.
    machine.put("etc/containers/registries.conf.d", "in the way");
    let before = machine.snapshot();
    let line = "podman --mirror https://m.example:5000 --ca CA";
    let told = machine.write(line).unwrap_err();
    assert!(
        told.starts_with("ROOT/etc/containers/registries.conf.d"),
        "{told}"
    );
    assert_eq!(machine.snapshot(), before);
    assert!(!machine.path("etc/containers/certs.d").exists());
}

/// Not even root may make files below /proc.
#[test]
fn a_read_only_directory_is_named() {
    let machine = Machine::new();
    let told = machine
        .change(&format!("{DOCKER} --write /proc"))
        .unwrap_err();
    assert!(
        told.starts_with("/proc/etc/docker/daemon.json can't be written: "),
        "{told}"
    );
}

#[test]
fn what_is_no_text_file_is_refused() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path(DAEMON_JSON)).unwrap();
    let told = machine.write(DOCKER).unwrap_err();
    assert_eq!(told, "ROOT/etc/docker/daemon.json: not a regular file");
    fs::remove_dir(machine.path(DAEMON_JSON)).unwrap();
    fs::write(machine.path(DAEMON_JSON), b"{\n\xff}").unwrap();
    assert_eq!(
        machine.write(DOCKER).unwrap_err(),
        "ROOT/etc/docker/daemon.json:2: not UTF-8"
    );
    fs::write(machine.path(DAEMON_JSON), vec![b' '; (1 << 20) + 1]).unwrap();
    let told = machine.write(DOCKER).unwrap_err();
    assert_eq!(
        told,
        "ROOT/etc/docker/daemon.json: larger than 1048576 bytes"
    );
}
