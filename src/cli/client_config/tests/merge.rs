//! Existing files: what is in them stays, and a second run changes nothing.

use super::*;

/// A client, its file, the content before and after `--mirror http://m.example:5000`.
const CASES: [(&str, &str, &str, &str); 14] = [
    (
        "docker",
        "etc/docker/daemon.json",
        "{\n    \"debug\": true,\n    \"log-opts\": {\"max-size\": \"10m\"}\n}\n",
        "{\n    \"debug\": true,\n    \"log-opts\": {\"max-size\": \"10m\"},\n    \
         \"registry-mirrors\": [\"http://m.example:5000\"]\n}\n",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{\"registry-mirrors\":[\"https://other.example\"],\"z\":1e3,\"a\":[]}",
        "{\"registry-mirrors\":[\"http://m.example:5000\", \"https://other.example\"],\"z\":1e3,\"a\":[]}",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{\"registry-mirrors\": [\n  \"https://other.example/\"\n]}\n",
        "{\"registry-mirrors\": [\n  \"http://m.example:5000\",\n  \"https://other.example/\"\n]}\n",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{\"a,{b\": \"}\", \"registry-mirrors\": [ ]}\n",
        "{\"a,{b\": \"}\", \"registry-mirrors\": [\"http://m.example:5000\"]}\n",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{ }\n",
        "{\n  \"registry-mirrors\": [\"http://m.example:5000\"]\n}\n",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "# ours\nversion = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # Debian's\n",
        "# ours\nversion = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # Debian's\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  \
         config_path = \"/etc/containerd/certs.d\"\n",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "version = 3\n\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = ''\n",
        "version = 3\n\n[plugins.'io.containerd.cri.v1.images'.registry]\n  \
         config_path = \"/etc/containerd/certs.d\"\n",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "oom_score = 0\n",
        "oom_score = 0\n\n[plugins.cri.registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
    ),
    (
        "containerd",
        "etc/containerd/certs.d/docker.io/hosts.toml",
        "# by hand\n[host.\"https://other.example\"]\n  capabilities = [\"pull\"]\n\
         [host.\"https://other.example\".header]\n  x = \"y\"\n",
        "[host.\"http://m.example:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n\
         # by hand\n[host.\"https://other.example\"]\n  capabilities = [\"pull\"]\n\
         [host.\"https://other.example\".header]\n  x = \"y\"\n",
    ),
    (
        "podman",
        "etc/containers/registries.conf",
        "unqualified-search-registries = [\"docker.io\"]\n\n[[registry]]\nprefix = \"docker.io\"\n\
         location = \"docker.io\" # itself\n\n[[registry.mirror]]\nlocation = \"other.example\"\n\n\
         [[registry]]\nlocation = \"blocked.example\"\nblocked = true\n",
        "unqualified-search-registries = [\"docker.io\"]\n\n[[registry]]\nprefix = \"docker.io\"\n\
         location = \"docker.io\" # itself\n\n[[registry.mirror]]\nlocation = \"m.example:5000\"\n\
         insecure = true\n\n[[registry.mirror]]\nlocation = \"other.example\"\n\n\
         [[registry]]\nlocation = \"blocked.example\"\nblocked = true\n",
    ),
    (
        "crio",
        "etc/containers/registries.conf.d/millpond.conf",
        "# first\n[[registry]]\nlocation = \"quay.io\"\nblocked = true\n",
        "# first\n[[registry]]\nlocation = \"quay.io\"\nblocked = true\n\n[[registry]]\n\
         location = \"docker.io\"\n\n[[registry.mirror]]\nlocation = \"m.example:5000\"\n\
         insecure = true\n",
    ),
    (
        "buildkit",
        "etc/buildkit/buildkitd.toml",
        "debug = true\n\n[registry.\"docker.io\"]\n  # near\n  mirrors = [\"other.example\"]\n\n\
         [worker.oci]\n  gc = true # keep\n",
        "debug = true\n\n[registry.\"docker.io\"]\n  # near\n  \
         mirrors = [\"m.example:5000\", \"other.example\"]\n\n\
         [registry.\"m.example:5000\"]\n  http = true\n\n[worker.oci]\n  gc = true # keep\n",
    ),
    (
        "k3s",
        "etc/rancher/k3s/registries.yaml",
        "mirrors:\n  docker.io:\n    endpoint:\n    - https://other.example\n    rewrite:\n      ^a: b\n\
         configs:\n  other.example:\n    auth:\n      username: u\n",
        "mirrors:\n  docker.io:\n    endpoint:\n    - http://m.example:5000\n    - https://other.example\n    \
         rewrite:\n      ^a: b\nconfigs:\n  other.example:\n    auth:\n      username: u\n",
    ),
    (
        "rke2",
        "etc/rancher/rke2/registries.yaml",
        "mirrors:\n  \"*\":\n",
        "mirrors:\n  '*': null\n  docker.io:\n    endpoint:\n    - http://m.example:5000\n",
    ),
];

#[test]
fn what_a_file_has_stays_and_comes_back() {
    for (client, path, before, after) in CASES {
        let machine = Machine::new();
        machine.put(path, before);
        fs::set_permissions(machine.path(path), fs::Permissions::from_mode(0o640)).unwrap();
        let first = machine.snapshot();
        let line = format!("{client} --mirror http://m.example:5000");
        let report = machine.write(&line).unwrap();
        assert_eq!(machine.text(path), after, "{path}");
        assert_eq!(
            machine.text(&format!("{path}.millpond-backup")),
            before,
            "{path}"
        );
        let wrote = format!("wrote ROOT/{path}, backup in ROOT/{path}.millpond-backup");
        assert!(report.contains(&wrote), "{report:?}");

        let second = machine.snapshot();
        assert_eq!(
            machine.write(&line),
            Ok(Vec::new()),
            "{path}: changed twice"
        );
        assert_eq!(machine.snapshot(), second, "{path}");

        let report = machine.undo(&line).unwrap();
        assert!(
            report.contains(&format!("restored ROOT/{path} from its backup")),
            "{report:?}"
        );
        assert_eq!(machine.snapshot(), first, "{path}");
        assert_eq!(machine.undo(&line), Ok(Vec::new()), "{path}: undone twice");
    }
}

/// The same without the backup, so that the entries themselves have to go.
#[test]
fn entries_are_removed_from_a_file_that_was_changed_since() {
    for (client, path, before, _) in CASES {
        let machine = Machine::new();
        machine.put(path, before);
        let line = format!("{client} --mirror http://m.example:5000");
        machine.write(&line).unwrap();
        // What somebody changed since, where it hurts least.
        let json = client == "docker";
        let added = if json { "\n" } else { "# later\n" };
        machine.put(path, &format!("{}{added}", machine.text(path)));
        let report = machine.undo(&line).unwrap().join("\n");
        let expected = format!(
            "removed the mirror's entries from ROOT/{path}, which has other changes; the backup \
             ROOT/{path}.millpond-backup is still there"
        );
        assert!(report.contains(&expected), "{report}");
        let text = machine.text(path);
        assert!(!text.contains("m.example"), "{path}: {text}");
        assert!(!text.contains("config_path = \"/etc"), "{path}: {text}");
        // YAML's comments are lost.
        assert!(
            json || path.ends_with("yaml") || text.ends_with(added),
            "{path}: {text}"
        );
        for kept in [
            "other.example",
            "rewrite",
            "blocked",
            "# by hand",
            "# keep",
            "log-opts",
            "oom_score",
        ] {
            assert_eq!(
                text.contains(kept),
                before.contains(kept),
                "{path}: {kept}: {text}"
            );
        }
    }
}

#[test]
fn yaml_comments_are_said_to_be_in_the_backup() {
    let machine = Machine::new();
    let path = "etc/rancher/k3s/registries.yaml";
    machine.put(path, "# ours\nmirrors: {}\n");
    let line = "k3s --mirror http://m.example:5000";
    let told = machine.write(line).unwrap().join("\n");
    assert!(
        told.ends_with("which has the comments; the new file has none"),
        "{told}"
    );
    machine.undo(line).unwrap();
    assert_eq!(machine.text(path), "# ours\nmirrors: {}\n");
    // A file that has the entries keeps its comments.
    let text = "# ours\nmirrors:\n  docker.io: {endpoint: ['http://m.example:5000']}\n";
    machine.put(path, text);
    assert_eq!(machine.write(line), Ok(Vec::new()));
    assert_eq!(machine.text(path), text);
}

/// A client, its file, a content, and what is said about it.
const BROKEN: [(&str, &str, &str, &str); 13] = [
    (
        "docker",
        "etc/docker/daemon.json",
        "{\n\"a\": 1,\n}\n",
        ":3: not valid JSON",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "[]\n",
        ":1: not valid JSON",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{\"a\": 1,\n\"registry-mirrors\": \"http://x\"}",
        ":2: \"registry-mirrors\" isn't a list of strings",
    ),
    (
        "docker",
        "etc/docker/daemon.json",
        "{\"a\": 1,\n\"a\": 2}",
        ":2: \"a\" is there twice",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "version = 2\n[a\n",
        ":2: not valid TOML",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n\
             endpoint = [\"https://x\"]\n",
        "mirrors` can't be used with hosts.toml files: move its settings to them",
    ),
    (
        "containerd",
        "etc/containerd/certs.d/docker.io/hosts.toml",
        "server = 'a'\nhost = {}\n",
        ":2: `host` is no table with a header of its own",
    ),
    (
        "podman",
        "etc/containers/registries.conf",
        "a = 1\na = 2\n",
        ":2: not valid TOML",
    ),
    (
        "podman",
        "etc/containers/registries.conf",
        "\n[registries.search]\nregistries = ['docker.io']\n",
        "registries` is of version 1 of the format",
    ),
    (
        "crio",
        "etc/containers/registries.conf.d/other.conf",
        "x\n",
        "other.conf:1: not valid TOML",
    ),
    (
        "buildkit",
        "etc/buildkit/buildkitd.toml",
        "[registry.\"docker.io\"]\nmirrors = 1\n",
        ":2: `registry.docker.io.mirrors` isn't a list",
    ),
    (
        "k3s",
        "etc/rancher/k3s/registries.yaml",
        "a: 1\nb: [\n",
        ": not valid YAML",
    ),
    (
        "k3s",
        "etc/rancher/k3s/registries.yaml",
        "configs:\nmirrors: []\n",
        ":2: `mirrors` isn't a mapping",
    ),
];

#[test]
fn broken_files_are_named_with_their_line_and_nothing_is_written() {
    for (client, path, text, expected) in BROKEN {
        let machine = Machine::new();
        machine.put(path, text);
        let before = machine.snapshot();
        let line = format!("{client} --mirror https://m.example:5000 --ca CA");
        let told = machine.write(&line).unwrap_err();
        assert!(told.starts_with(&format!("ROOT/{path}")), "{told}");
        assert!(told.contains(expected), "{told}");
        assert_eq!(machine.snapshot(), before, "{path}");
        assert!(!machine.path("etc/docker/certs.d").exists());
    }
}

#[test]
fn containerd_keeps_the_folder_that_is_configured() {
    let machine = Machine::new();
    let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
                  config_path = \"/srv/certs.d:/etc/docker/certs.d\"\n";
    machine.put("etc/containerd/config.toml", config);
    let line = "containerd --mirror http://m.example:5000 --upstream all";
    let wrote = "wrote ROOT/srv/certs.d/_default/hosts.toml".to_owned();
    assert_eq!(machine.write(line), Ok(vec![wrote]));
    assert_eq!(machine.text("etc/containerd/config.toml"), config);
    // Without naming the registries.
    let removed = "removed ROOT/srv/certs.d/_default/hosts.toml".to_owned();
    assert_eq!(
        machine.undo("containerd --mirror http://m.example:5000"),
        Ok(vec![removed])
    );
    assert!(!machine.path("srv/certs.d/_default").exists());
}

#[test]
fn containerd_without_its_cri_plugin_keeps_its_configuration() {
    let machine = Machine::new();
    machine.put(
        "etc/containerd/config.toml",
        "disabled_plugins = [\"cri\"]\n",
    );
    let wrote = "wrote ROOT/etc/containerd/certs.d/docker.io/hosts.toml".to_owned();
    assert_eq!(
        machine.write("containerd --mirror http://m.example:5000"),
        Ok(vec![wrote])
    );
}
