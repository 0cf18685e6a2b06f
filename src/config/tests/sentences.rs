//! Every problem and every warning, as the operator reads it.

use super::{loaded, problems};

/// (what follows the version line, the problem).
const SENTENCES: &[(&str, &str)] = &[
    (
        "proxy:\n  remoteulr: x",
        "config.yml:3: unknown key `proxy.remoteulr`; did you mean `proxy.remoteurl`?",
    ),
    (
        "proxy: {remoteulr: x}",
        "config.yml:2: unknown key `proxy.remoteulr`; did you mean `proxy.remoteurl`?",
    ),
    (
        "rootdirectory: x",
        "config.yml:2: unknown key `rootdirectory`; did you mean `storage.filesystem.rootdirectory`?",
    ),
    ("quite: unlike", "config.yml:2: unknown key `quite`"),
    (
        "proxy:\n  upstreams:\n  - name: ghcr.io\n    remoteurl: https://ghcr.io\n    user: x",
        "config.yml:6: unknown key `proxy.upstreams[0].user`",
    ),
    (
        "http:\n  addr: :1\n  addr: :2",
        "config.yml:4: the key `http.addr` is repeated; keep one",
    ),
    ("http: 5", "config.yml:2: `http` must be a map of keys"),
    (
        "http: {addr: [1]}",
        "config.yml:2: `http.addr` must be a single value",
    ),
    (
        "http: {headers: {X-A: b}}",
        "config.yml:2: `http.headers.X-A` must be a list",
    ),
    (
        "proxy: {upstreams: {}}",
        "config.yml:2: `proxy.upstreams` must be a list",
    ),
    (
        "proxy: {upstreams: [x]}",
        "config.yml:2: `proxy.upstreams[0]` must be a map of keys",
    ),
    (
        "proxy: {upstreams: [~]}",
        "config.yml:2: `proxy.upstreams[0]` is empty; remove it",
    ),
    (
        "proxy: {aliases: [[x]]}",
        "config.yml:2: `proxy.aliases[0]` must be a single value",
    ),
    (
        "log: {level: loud}",
        "config.yml:2: `log.level` is \"loud\"; write error, warn, info, debug or trace",
    ),
    (
        "loglevel: loud",
        "config.yml:2: `loglevel` is \"loud\"; write error, warn, info, debug or trace",
    ),
    (
        "log: {formatter: xml}",
        "config.yml:2: `log.formatter` is \"xml\"; write text or json",
    ),
    (
        "log: {accesslog: {disabled: maybe}}",
        "config.yml:2: `log.accesslog.disabled` is \"maybe\"; write true or false",
    ),
    (
        "storage:\n  s3:",
        "config.yml:3: the storage driver `storage.s3` is not supported; use `storage.filesystem` (or `storage.inmemory` for tests)",
    ),
    (
        "storage: azure",
        "config.yml:2: the storage driver `storage.azure` is not supported; use `storage.filesystem` (or `storage.inmemory` for tests)",
    ),
    (
        "storage: {filesystem: {rootdirectory: a}, inmemory: }",
        "config.yml:2: `storage` names two drivers, `filesystem` and `inmemory`; keep one",
    ),
    (
        "storage: {filesystem: {mode: 0755}}",
        "config.yml:2: `storage.filesystem.mode` is \"0755\"; write the permissions of files as octal digits such as 0640: readable and writable for the owner, and executable for nobody",
    ),
    (
        "http: {addr: 5000}",
        "config.yml:2: `http.addr` is \"5000\"; write host:port, or :port for all interfaces",
    ),
    (
        "http: {debug: {addr: localhost}}",
        "config.yml:2: `http.debug.addr` is \"localhost\"; write host:port, or :port for all interfaces",
    ),
    (
        "http: {debug: {addr: ':1', prometheus: {path: metrics}}}",
        "config.yml:2: `http.debug.prometheus.path` is \"metrics\"; write a path such as /metrics",
    ),
    (
        "http: {net: udp}",
        "config.yml:2: `http.net` is \"udp\"; write tcp or unix",
    ),
    (
        "http: {net: unix}",
        "config.yml:2: `http.net` is unix, but `http.addr` is missing; write the socket's path",
    ),
    (
        "http: {prefix: mirror}",
        "config.yml:2: `http.prefix` is \"mirror\"; write a plain path such as /mirror/",
    ),
    (
        "http: {prefix: /a/../b}",
        "config.yml:2: `http.prefix` is \"/a/../b\"; write a plain path such as /mirror/",
    ),
    (
        "http: {host: 'mirror:5000'}",
        "config.yml:2: `http.host` is \"mirror:5000\"; write a URL such as https://mirror.example",
    ),
    (
        "http: {headers: {'X A': [b]}}",
        "config.yml:2: \"X A\" is not a valid header name",
    ),
    (
        "http: {headers: {X-A: [\"b\\n\"]}}",
        "config.yml:2: `http.headers.X-A[0]` is \"b\\n\"; write printable ASCII text",
    ),
    (
        "http: {headers: {Content-Length: [1]}}",
        "config.yml:2: the header `content-length` is set by the server; remove it",
    ),
    (
        "http: {draintimeout: 30}",
        "config.yml:2: `http.draintimeout` is \"30\"; it needs a unit, such as 60s, 10m or 168h",
    ),
    (
        "http: {limits: {connections: 0}}",
        "config.yml:2: `http.limits.connections` is \"0\"; write a whole number from 1 to 1000000",
    ),
    (
        "http: {limits: {peraddress: many}}",
        "config.yml:2: `http.limits.peraddress` is \"many\"; write a whole number from 0 to 1000000",
    ),
    (
        "http: {limits: {perAddress: 5}}",
        "config.yml:2: unknown key `http.limits.perAddress`; did you mean `http.limits.peraddress`?",
    ),
    (
        "http:\n  tls:\n    certificate: x",
        "config.yml:3: `http.tls` is not supported: plain HTTP would be served instead; remove the section and put a reverse proxy that terminates TLS in front",
    ),
    (
        "auth: {htpasswd: {realm: x}}",
        "config.yml:2: `auth` is not supported: it would be silently weaker to serve without authentication; remove the section and put a reverse proxy that authenticates in front",
    ),
    (
        "middleware: {registry: [{name: x}]}",
        "config.yml:2: `middleware` is not supported: what it would enforce or rewrite would be left out; remove its entries, or disable them",
    ),
    (
        "middleware: {registry: [{name: x, disabled: true}], storage: [{name: y, disabled: false}]}",
        "config.yml:2: `middleware` is not supported: what it would enforce or rewrite would be left out; remove its entries, or disable them",
    ),
    (
        "storage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: ':5000'}",
        "config.yml:2: `storage.filesystem.rootdirectory` names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror and deletes what expires, which would empty a plain registry's directory; write the upstream's URL, such as https://registry-1.docker.io for Docker Hub",
    ),
    (
        "storage: {filesystem: {rootdirectory: a}}\nproxy: {remoteurl: ''}",
        "config.yml:2: `storage.filesystem.rootdirectory` names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror and deletes what expires, which would empty a plain registry's directory; write the upstream's URL, such as https://registry-1.docker.io for Docker Hub",
    ),
    (
        "proxy: {exec: {command: x}}",
        "config.yml:2: `proxy.exec` is not supported: no command is run for credentials; write `proxy.username` and `proxy.password`",
    ),
    (
        "proxy: {ttl: -1h}",
        "config.yml:2: `proxy.ttl` is \"-1h\"; it must not be negative",
    ),
    (
        "proxy: {ttl: 101years}",
        "config.yml:2: `proxy.ttl` is \"101years\"; it must be at most 100 years",
    ),
    (
        "proxy: {tags: {ttl: soon}}",
        "config.yml:2: `proxy.tags.ttl` is \"soon\"; it must be a duration, such as 500ms, 60s, 1h30m or 7days",
    ),
    (
        "proxy: {stalltimeout: 0}",
        "config.yml:2: `proxy.stalltimeout` must be more than 0",
    ),
    (
        "proxy: {remoteurl: ghcr.io}",
        "config.yml:2: `proxy.remoteurl` is \"ghcr.io\"; write a URL such as https://registry-1.docker.io",
    ),
    (
        "proxy: {remoteurl: 'ftp://a'}",
        "config.yml:2: `proxy.remoteurl` is \"ftp://a\"; write a URL such as https://registry-1.docker.io",
    ),
    (
        "proxy: {remoteurl: 'https://a/b'}",
        "config.yml:2: `proxy.remoteurl` is \"https://a/b\"; write only the scheme, host and port",
    ),
    (
        "proxy: {remoteurl: 'https://u:hunter2@a'}",
        "config.yml:2: `proxy.remoteurl` contains an @; write the credentials as `username` and `password` beside it",
    ),
    (
        "proxy:\n  username: u",
        "config.yml:3: `proxy.username` is set, but `proxy.password` isn't; write both or none",
    ),
    (
        "proxy:\n  password: hunter2",
        "config.yml:3: `proxy.password` is set, but `proxy.username` isn't; write both or none",
    ),
    (
        "proxy: {username: 'u:v', password: hunter2}",
        "config.yml:2: `proxy.username` contains a colon, which would separate it from the password; remove it",
    ),
    (
        "proxy: {aliases: ['https://a']}",
        "config.yml:2: `proxy.aliases[0]` is \"https://a\"; write host or host:port",
    ),
    (
        "proxy: {upstreams: [{remoteurl: 'https://a'}]}",
        "config.yml:2: `proxy.upstreams[0].name` is missing; write one such as ghcr.io",
    ),
    (
        "proxy: {upstreams: [{name: ghcr.io}]}",
        "config.yml:2: `proxy.upstreams[0].remoteurl` is missing; write the upstream's URL",
    ),
    (
        "proxy: {upstreams: [{name: 'a.b:5', remoteurl: 'https://a'}]}",
        "config.yml:2: `proxy.upstreams[0].name` is \"a.b:5\"; write lower-case letters and digits, separated by one of . _ - and without a slash or port, such as ghcr.io",
    ),
    (
        "proxy:\n  upstreams:\n  - {name: a.b, remoteurl: 'https://a'}\n  - {name: a.b, remoteurl: 'https://c'}",
        "config.yml:5: `proxy.upstreams[0]` and `proxy.upstreams[1]` are both named `a.b`",
    ),
    (
        "proxy:\n  upstreams:\n  - {name: a.b, remoteurl: 'https://a'}\n  - {name: c.d, remoteurl: 'https://c', aliases: [A]}",
        "config.yml:5: the upstreams `a.b` and `c.d` both answer to `a`; give it to one",
    ),
    (
        "proxy:\n  upstreams:\n  - {name: hub.x, remoteurl: 'https://docker.io'}",
        "config.yml:4: the upstreams `docker.io` and `hub.x` both answer to `docker.io`; give it to one",
    ),
    (
        "proxy: {remoteurl: 'http://a', username: u, password: p}",
        "config.yml:2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.plainhttp: true` to permit it",
    ),
    (
        "proxy: {insecure: true, upstreams: [{name: a.b, remoteurl: 'http://a', username: u, password: p, insecure: true}]}",
        "config.yml:2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.upstreams[0].plainhttp: true` to permit it",
    ),
    (
        "proxy: {realm: auth.example}",
        "config.yml:2: `proxy.realm` is \"auth.example\"; write a URL such as https://auth.example.com/token",
    ),
    (
        "proxy: {realm: 'https://u:secret@auth.example'}",
        "config.yml:2: `proxy.realm` contains an @; write the credentials as `username` and `password` beside it",
    ),
    (
        "proxy: {realm: 'http://auth.example/'}",
        "config.yml:2: `proxy.realm` is \"http://auth.example/\"; credentials would be sent there over plain HTTP: use an https:// URL, or write `proxy.plainhttp: true` to permit it",
    ),
    (
        "proxy: {scope: 'ä'}",
        "config.yml:2: `proxy.scope` is \"ä\"; write a scope such as repository:{name}:pull",
    ),
    (
        "proxy: {redirects: [cdn.example, 'https://cdn.example']}",
        "config.yml:2: `proxy.redirects[1]` is \"https://cdn.example\"; a host pattern is a host without scheme and port, *.domain or *",
    ),
    (
        "http: {addr: @}",
        "config.yml:2: the file is not valid YAML: found character that cannot start any token at line 2 column 14, while scanning for the next token",
    ),
];

#[test]
fn every_sentence() {
    for (text, expected) in SENTENCES {
        let found = problems(&format!("version: 0.1\n{text}\n"), &[]);
        assert_eq!(found, [*expected], "{text}");
    }
    let version = "config.yml: `version` is missing; write `version: 0.1`";
    assert_eq!(problems("", &[]), [version]);
    let version = "config.yml:1: `version` is \"0.10\"; only 0.1 is supported";
    assert_eq!(problems("version: 0.10", &[]), [version]);
    let missing = "proxy: {ca: /nowhere/ca.pem}";
    let found = problems(&format!("version: 0.1\n{missing}"), &[]);
    let start = "config.yml:2: `proxy.ca` is \"/nowhere/ca.pem\"; it can't be read: ";
    assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}");
}

#[test]
fn all_problems_at_once_and_a_bounded_number() {
    let text =
        "version: 7\nhttp:\n  addr: x\n  tls: {certificate: y}\nproxy:\n  ttl: 5\n  username: u\n";
    let found = problems(text, &[("REGISTRY_LOG_LEVEL", "loud")]);
    // In the file's order; a variable has no line.
    let starts = [
        "config.yml:1: ",
        "config.yml:3: ",
        "config.yml:4: ",
        "config.yml:6: ",
        "config.yml:7: ",
        "REGISTRY_LOG_LEVEL: ",
    ];
    assert_eq!(found.len(), starts.len(), "{found:?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found}");
    }
    let many: Vec<String> = (0..500).map(|number| format!("key{number}: x")).collect();
    assert_eq!(problems(&many.join("\n"), &[]).len(), 100);
}

/// (what follows the version line, the warning).
const WARNINGS: &[(&str, &str)] = &[
    (
        "proxy:",
        "config.yml:2: `proxy.remoteurl` is not set: the default upstream is Docker Hub",
    ),
    (
        "loglevel: debug",
        "config.yml:2: `loglevel` is deprecated; write `log.level`",
    ),
    (
        "log: {hooks: [{type: mail}]}",
        "config.yml:2: `log.hooks` has no effect: no mail is sent",
    ),
    (
        "log: {reportcaller: true}",
        "config.yml:2: `log.reportcaller` has no effect: log lines don't name source code",
    ),
    (
        "storage:\n  filesystem:",
        "config.yml:3: `storage.filesystem.rootdirectory` is not set: data goes to ./millpond-data (the reference registry's default is /var/lib/registry)",
    ),
    (
        "storage: {filesystem: {rootdirectory: a, maxthreads: 100}}\nproxy: {remoteurl: 'https://a'}",
        "config.yml:2: `storage.filesystem.maxthreads` has no effect: the number of threads is not limited by it",
    ),
    (
        "storage: {redirect: {disable: true}}",
        "config.yml:2: `storage.redirect` has no effect: blobs are never redirected to the storage",
    ),
    (
        "http: {secret: hunter2}",
        "config.yml:2: `http.secret` has no effect: there are no uploads whose state needs signing",
    ),
    (
        "http: {h2c: {enabled: true}}",
        "config.yml:2: `http.h2c` has no effect: HTTP/2 without TLS is governed by `http.http2.disabled`",
    ),
    (
        "http: {debug: {prometheus: {enabled: true}}}",
        "config.yml:2: `http.debug.prometheus` has no effect: `http.debug.addr` is not set",
    ),
    (
        "tags: {maxtags: 1000}",
        "config.yml:2: `tags.maxtags` has no effect: the size of a page of tags is built in",
    ),
    (
        "proxy: {remoteurl: 'https://a', cachewritetimeout: 5m}",
        "config.yml:2: `proxy.cachewritetimeout` has no effect: `proxy.stalltimeout` ends a download that makes no progress",
    ),
    (
        "middleware: {registry: [{name: x, disabled: true, options: {a: b}}], storage: [{name: y, disabled: yes}]}",
        "config.yml:2: `middleware` has no effect: all its entries are disabled",
    ),
    (
        "notifications: {endpoints: [{name: x}]}",
        "config.yml:2: `notifications` has no effect: no events are sent",
    ),
    (
        "redis: {addr: x}",
        "config.yml:2: `redis` has no effect: nothing is cached in Redis",
    ),
    (
        "validation: {disabled: true}",
        "config.yml:2: `validation` has no effect: it concerns pushes, which a mirror refuses",
    ),
    (
        "proxy: {remoteurl: 'http://a', username: u, password: p, plainhttp: true}",
        "config.yml:2: the credentials for a are sent over plain HTTP",
    ),
    (
        "proxy: {remoteurl: 'https://a', insecure: true, username: u, password: p}",
        "config.yml:2: the credentials for a are sent to a server whose certificate isn't checked",
    ),
    (
        "proxy: {upstreams: [{name: team, remoteurl: 'https://a'}]}",
        "config.yml:2: `proxy.upstreams[0].name` has no dot: the default upstream's repositories under `team/` share their place in the store with this upstream's",
    ),
];

#[test]
fn every_warning() {
    const NO_UPSTREAM: &str = "`proxy.remoteurl` is not set";
    for (text, expected) in WARNINGS {
        let mut warnings = loaded(&format!("version: 0.1\n{text}\n"), &[]).warnings;
        if !expected.contains(NO_UPSTREAM) {
            warnings.retain(|warning| !warning.contains(NO_UPSTREAM));
        }
        assert_eq!(warnings, [*expected], "{text}");
    }
    // What is empty asks for nothing; a loopback connection shows no one a password.
    for text in [
        "auth:",
        "middleware: {registry: [], storage: }",
        "redis: {addr: ''}",
        "http: {tls: {certificate: '', letsencrypt: {}}}",
        "proxy: {remoteurl: 'http://localhost:1', username: u, password: p}",
    ] {
        let mut warnings = loaded(&format!("version: 0.1\n{text}\n"), &[]).warnings;
        warnings.retain(|warning| !warning.contains(NO_UPSTREAM));
        assert_eq!(warnings, Vec::<String>::new(), "{text}");
    }
}
