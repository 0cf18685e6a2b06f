//! Every problem and every warning, as the operator reads it.

use super::{loaded, problems};

/// What follows the version line, and below it the problem, which starts with `config.yml:`.
const PROBLEMS: &str = r#"
proxy:
  remoteulr: x
=> 3: unknown key `proxy.remoteulr`; did you mean `proxy.remoteurl`?
proxy: {remoteulr: x}
=> 2: unknown key `proxy.remoteulr`; did you mean `proxy.remoteurl`?
rootdirectory: x
=> 2: unknown key `rootdirectory`; did you mean `storage.filesystem.rootdirectory`?
quite: unlike
=> 2: unknown key `quite`
htpp: x
=> 2: unknown key `htpp`; did you mean `http`?
proxy: {remoteURL: x}
=> 2: unknown key `proxy.remoteURL`; did you mean `proxy.remoteurl`?
proxy: {wholly-unlike: x}
=> 2: unknown key `proxy.wholly-unlike`
proxy: {remoteurlremoteurlremoteurlremoteurlremoteurlremoteurlremoteurlremoteurl: x}
=> 2: unknown key `proxy.remoteurlremoteurlremoteurlremoteurlremoteurlremoteurlremoteurlremoteurl`
proxy:
  upstreams:
  - name: ghcr.io
    remoteurl: https://ghcr.io
    user: x
=> 6: unknown key `proxy.upstreams[0].user`
http:
  addr: :1
  addr: :2
=> 4: the key `http.addr` is repeated; keep one
http: 5
=> 2: `http` must be a map of keys
http: {addr: [1]}
=> 2: `http.addr` must be a single value
http: {headers: {X-A: b}}
=> 2: `http.headers.X-A` must be a list
proxy: {upstreams: {}}
=> 2: `proxy.upstreams` must be a list
proxy: {upstreams: [x]}
=> 2: `proxy.upstreams[0]` must be a map of keys
proxy: {upstreams: [~]}
=> 2: `proxy.upstreams[0]` is empty; remove it
proxy: {aliases: [[x]]}
=> 2: `proxy.aliases[0]` must be a single value
log: {level: loud}
=> 2: `log.level` is "loud"; write error, warn, info, debug or trace
loglevel: loud
=> 2: `loglevel` is "loud"; write error, warn, info, debug or trace
log: {formatter: xml}
=> 2: `log.formatter` is "xml"; write text or json
log: {levels: {upstreams: debug}}
=> 2: `log.levels.upstreams` names no module; write a module of ARCHITECTURE.md such as upstream, accesslog for the log of requests, or one of the libraries h2, hyper, hyper_util, reqwest, rustls and tokio
log: {levels: {upstream: loud}}
=> 2: `log.levels.upstream` is "loud"; write error, warn, info, debug or trace
log: {accesslog: {sample: 0}}
=> 2: `log.accesslog.sample` is "0"; write a whole number from 1 to 1000000
log: {accesslog: {slow: 5}}
=> 2: `log.accesslog.slow` is "5"; it needs a unit, such as 60s, 10m or 168h
tracing: {endpoint: 'collector:4318'}
=> 2: `tracing.endpoint` isn't the URL of a collector; write an http:// or https:// URL such as http://collector:4318
tracing: {endpoint: 'http://u:p@a'}
=> 2: `tracing.endpoint` isn't the URL of a collector; write an http:// or https:// URL such as http://collector:4318
tracing: {headers: {'a b': c}}
=> 2: `tracing.headers.a b` can't be sent as an HTTP header
tracing: {sample: 1.5}
=> 2: `tracing.sample` is "1.5"; write a number from 0 to 1 such as 0.01
tracing: {timeout: 0}
=> 2: `tracing.timeout` is 0; write how long a request may take, such as 10s
log: {accesslog: {disabled: maybe}}
=> 2: `log.accesslog.disabled` is "maybe"; write true or false
storage:
  oss:
=> 3: the storage driver `storage.oss` is not supported; use `storage.filesystem` (or `storage.inmemory` for tests)
storage: swift
=> 2: the storage driver `storage.swift` is not supported; use `storage.filesystem` (or `storage.inmemory` for tests)
storage: {filesystem: {rootdirectory: a}, inmemory: }
=> 2: `storage` names two drivers, `filesystem` and `inmemory`; keep one
storage: {filesystem: {mode: 0755}}
=> 2: `storage.filesystem.mode` is "0755"; write the permissions of files as octal digits such as 0640: readable and writable for the owner, and executable for nobody
http: {addr: 5000}
=> 2: `http.addr` is "5000"; write host:port, or :port for all interfaces
http: {debug: {addr: localhost}}
=> 2: `http.debug.addr` is "localhost"; write host:port, or :port for all interfaces
http: {debug: {addr: ':1', prometheus: {path: metrics}}}
=> 2: `http.debug.prometheus.path` is "metrics"; write a path such as /metrics
http: {net: udp}
=> 2: `http.net` is "udp"; write tcp or unix
http: {net: unix}
=> 2: `http.net` is unix, but `http.addr` is missing; write the socket's path
http: {shutdowndelay: 11m}
=> 2: `http.shutdowndelay` must be at most 10m
health: {storagedriver: {interval: 10ms}}
=> 2: `health.storagedriver.interval` must be from 0.1s to 24h
health: {storagedriver: {interval: 10}}
=> 2: `health.storagedriver.interval` is "10"; it needs a unit, such as 60s, 10m or 168h
health: {storagedriver: {threshold: 1001}}
=> 2: `health.storagedriver.threshold` is "1001"; write a whole number from 0 to 1000
health: {file: [{interval: 1s}]}
=> 2: `health.file[0].file` is missing; write the path of a file that must not exist
health: {http: [{timeout: 1s}]}
=> 2: `health.http[0].uri` is missing; write the URL to send HEAD requests to
health: {http: [{uri: 'ftp://a'}]}
=> 2: `health.http[0].uri` is "ftp://a"; write a URL such as https://auth.example/healthy
health: {http: [{uri: 'http://a:hunter2@c'}]}
=> 2: `health.http[0].uri` contains an @; write the credentials as an Authorization header in `headers`
health: {http: [{uri: 'http://a', statuscode: 20}]}
=> 2: `health.http[0].statuscode` is "20"; write a whole number from 100 to 599
health: {http: [{uri: 'http://a', headers: {Authorization: ["Bearer secret\n"]}}]}
=> 2: `health.http[0].headers.Authorization[0]` must be printable ASCII text
health: {http: [{uri: 'http://a', headers: {Content-Length: ['1']}}]}
=> 2: the header `content-length` is set by the server; remove it
health: {http: [{uri: 'http://a', timeout: 11m}]}
=> 2: `health.http[0].timeout` must be from 0.001s to 10m
health: {http: [{uri: 'http://a'}, {uri: 'http://a'}]}
=> 2: http://a is checked twice; keep one
health: {tcp: [{timeout: 1s}]}
=> 2: `health.tcp[0].addr` is missing; write host:port to connect to
health: {tcp: [{addr: ':1'}]}
=> 2: `health.tcp[0].addr` is ":1"; write host:port
health: {tcp: [{addr: a}]}
=> 2: `health.tcp[0].addr` is "a"; write host:port
health: {file: [{file: a, statuscode: 1}]}
=> 2: unknown key `health.file[0].statuscode`
http: {prefix: mirror}
=> 2: `http.prefix` is "mirror"; write a plain path such as /mirror/
http: {prefix: /a/../b}
=> 2: `http.prefix` is "/a/../b"; write a plain path such as /mirror/
http: {host: 'mirror:5000'}
=> 2: `http.host` is "mirror:5000"; write a URL such as https://mirror.example
http: {headers: {'X A': [b]}}
=> 2: "X A" is not a valid header name
http: {headers: {X-A: ["b\n"]}}
=> 2: `http.headers.X-A[0]` must be printable ASCII text
http: {headers: {Content-Length: [1]}}
=> 2: the header `content-length` is set by the server; remove it
http: {draintimeout: 30}
=> 2: `http.draintimeout` is "30"; it needs a unit, such as 60s, 10m or 168h
http: {limits: {connections: 0}}
=> 2: `http.limits.connections` is "0"; write a whole number from 1 to 1000000
http: {limits: {peraddress: many}}
=> 2: `http.limits.peraddress` is "many"; write a whole number from 0 to 1000000
http: {limits: {perAddress: 5}}
=> 2: unknown key `http.limits.perAddress`; did you mean `http.limits.peraddress`?
http:
  tls:
    certificate: x
=> 3: `http.tls.key` is missing; write the path of a PEM file with the private key
http: {tls: {key: k}}
=> 2: `http.tls.certificate` is missing; write the path of a PEM file with the certificate
http: {tls: {clientcas: [a]}}
=> 2: `http.tls.certificate` is missing; write the path of a PEM file with the certificate
http: {tls: {ciphersuites: [TLS_AES_128_GCM_SHA256]}}
=> 2: `http.tls.certificate` is missing; write the path of a PEM file with the certificate
http: {tls: {certificate: c, key: k, clientauth: sometimes}}
=> 2: `http.tls.clientauth` is "sometimes"; write request-client-cert, require-any-client-cert, verify-client-cert-if-given or require-and-verify-client-cert
http: {tls: {certificate: c, key: k, clientauth: verify-client-cert-if-given}}
=> 2: `http.tls.clientauth` needs `http.tls.clientcas`: without them, no certificate of a client is valid
http: {tls: {certificate: c, key: k, minimumtls: ssl3}}
=> 2: `http.tls.minimumtls` is "ssl3"; write tls1.2 or tls1.3
http: {tls: {certificate: c, key: k, ciphersuites: [TLS_NULL]}}
=> 2: `http.tls.ciphersuites[0]` is "TLS_NULL"; write any of TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
http: {tls: {certificate: c, key: k, ciphersuites: [TLS_RSA_WITH_AES_128_CBC_SHA]}}
=> 2: `http.tls.ciphersuites` names no suite that is implemented; write any of TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
http: {tls: {letsencrypt: {email: a@b.c}}}
=> 2: `http.tls.letsencrypt` is not supported: no ACME client is built in; let certbot, cert-manager or another one write the files of `certificate` and `key`, which are read again when they change
http: {net: unix, addr: /s, tls: {certificate: c, key: k}}
=> 2: `http.tls` is for TCP only, and the address is a unix socket's; remove the section
http: {listeners: [{serves: registry}]}
=> 2: `http.listeners[0].addr` is missing; write host:port, or :port for all interfaces
http: {listeners: [{net: unix}]}
=> 2: `http.listeners[0].net` is unix, but `http.listeners[0].addr` is missing; write the socket's path
http: {listeners: [{addr: ':1', serves: all}]}
=> 2: `http.listeners[0].serves` is "all"; write registry or operators
http: {listeners: [{addr: ':1', tls: {certificate: c}}]}
=> 2: `http.listeners[0].tls.key` is missing; write the path of a PEM file with the private key
auth: {htpasswd: {}}
=> 2: `auth.htpasswd.path` is missing; write the path of the htpasswd file
auth: {htpasswd: {path: /nowhere/htpasswd}}
=> 2: `auth.htpasswd.path` is "/nowhere/htpasswd"; it can't be read: No such file or directory (os error 2)
auth: {silly: {realm: a, service: b}}
=> 2: `auth.silly` is not supported: it lets everybody in who sends any Authorization header; remove it
auth: {token: {realm: 'https://a', service: b, issuer: c, rootcertbundle: /dev/null}}
=> 2: `auth.token.rootcertbundle` is "/dev/null"; it is not a file
auth: {oidc: [{issuer: 'http://a.example', audience: b}]}
=> 2: `auth.oidc[0].issuer` is "http://a.example"; write an https:// URL such as https://token.actions.githubusercontent.com
auth: {oidc: [{issuer: 'https://a.example', audience: b, algorithms: [HS256]}]}
=> 2: `auth.oidc[0].algorithms[0]` is "HS256"; write one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA
auth: {oidc: [{issuer: 'https://a.example'}]}
=> 2: `auth.oidc[0].audience` is missing; write what tokens must be for, such as this mirror's URL
auth: {oidc: [{issuer: 'https://gitlab.com/', audience: b}]}
=> 2: `auth.oidc[0].issuer` issues tokens for everybody's projects: each of them is a user here; write `required` to name yours, such as { repository_owner: acme }
auth: {certificates: [{subject: '*O=acme'}]}
=> 2: `auth.certificates[0].subject` is "*O=acme"; write a pattern of the common name such as build-*, or of one attribute such as O=acme*
auth: {networks: [{networks: [10.0.0.0/33], user: a}]}
=> 2: `auth.networks[0].networks[0]` is "10.0.0.0/33"; write a network such as 10.0.0.0/8, or an address
auth: {networks: [{networks: [10.0.0.0/8]}]}
=> 2: `auth.networks[0].user` is missing; write the name of the user that callers from there are
auth: {certificates: [{user: a}]}
=> 2: `auth.certificates[0].subject` is missing; write a pattern of the common name, or `san`
auth: {certificates: [{subject: a, san: b}]}
=> 2: `auth.certificates[0].san` is set beside `subject`; write one of them
auth: {groups: {admins: ['a b']}}
=> 2: `auth.groups.admins[0]` is "a b"; write a name of at most 256 bytes, without blanks and colons
auth: {tokenttl: 1s}
=> 2: `auth.tokenttl` must be from 1m to 24h
http: {trustedproxies: [a]}
=> 2: `http.trustedproxies[0]` is "a"; write a network such as 10.0.0.0/8, or an address
middleware: {registry: [{name: x}]}
=> 2: `middleware` is not supported: what it would enforce or rewrite would be left out; remove its entries, or disable them
middleware: {registry: [{name: x, disabled: true}], storage: [{name: y, disabled: false}]}
=> 2: `middleware` is not supported: what it would enforce or rewrite would be left out; remove its entries, or disable them
access: [{anyone: true}]
=> 2: `access[0].effect` is missing; write allow or deny
access: [{anyone: true, effect: permit}]
=> 2: `access[0].effect` is "permit"; write allow or deny
access: [{effect: allow}]
=> 2: `access[0].anyone` is missing; write `anyone: true` to allow it to all callers, or name them by users, groups, networks or anonymous
access: [{anyone: true, effect: allow, hide: true}]
=> 2: `access[0].hide` needs `effect: deny`
access: [{networks: [10.0.0.0/33], effect: allow}]
=> 2: `access[0].networks[0]` is "10.0.0.0/33"; write a network such as 10.0.0.0/8 or fd00::/8
access: [{networks: [10.0.0.1/8], effect: allow}]
=> 2: `access[0].networks[0]` is "10.0.0.1/8"; it has bits after its prefix; write 10.0.0.0/8
access: [{users: ['a b'], effect: allow}]
=> 2: `access[0].users[0]` is "a b"; write a user's name without blanks, or * for a part of it
access: [{upstreams: [quay.io], effect: deny}]
=> 2: `access[0].upstreams[0]` is "quay.io"; no upstream has this name; write one of proxy.upstreams, or the default's
access: [{repositories: [A/*], effect: deny}]
=> 2: `access[0].repositories[0]` is "A/*"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
access: [{repositories: [], effect: deny}]
=> 2: `access[0].repositories` is empty; remove the key, or write what the rule is for
access: [{users: , effect: allow}]
=> 2: `access[0].users` is empty; remove the key, or write what the rule is for
access: [{actions: [read], effect: deny}]
=> 2: `access[0].actions[0]` is "read"; write pull, push, delete or list
access: [{user: [a], effect: deny}]
=> 2: unknown key `access[0].user`; did you mean `access[0].users`?
deny: {digests: ['sha256:1']}
=> 2: `deny.digests[0]` is "sha256:1"; the hexadecimal part is not the algorithm's length of lower-case digits
deny: {images: ['A']}
=> 2: `deny.images[0]` is "A"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
log: {audit: {file: a, stderr: true}}
=> 2: `log.audit.stderr` is true, but `log.audit.file` is set; keep one
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ':5000'}
=> 2: `storage.filesystem.rootdirectory` names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror and deletes what expires, which would empty a plain registry's directory; write the upstream's URL, such as https://registry-1.docker.io for Docker Hub
storage: {filesystem: {rootdirectory: a}}
proxy: {remoteurl: ''}
=> 2: `storage.filesystem.rootdirectory` names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror and deletes what expires, which would empty a plain registry's directory; write the upstream's URL, such as https://registry-1.docker.io for Docker Hub
proxy: {exec: {lifetime: 1h}}
=> 2: `proxy.exec.command` is missing; write the program, such as docker-credential-ecr-login
proxy: {anonymous: true, exec: {command: x, lifetime: 12}}
=> 2: `proxy.exec.lifetime` is "12"; it needs a unit, such as 60s, 10m or 168h
proxy: {anonymous: true, username: u, password: p, exec: {command: x}}
=> 2: `proxy.exec` and `proxy.username` are two sources of credentials; keep one
proxy: {credentialsrequired: sometimes}
=> 2: `proxy.credentialsrequired` is "sometimes"; write true or false
proxy: {anonymous: true, credentials: [{username: u, password: p}]}
=> 2: `proxy.credentials[0].repositories` is missing; write a list of patterns such as [owner/*]
proxy: {anonymous: true, credentials: [{repositories: [a/B], username: u, password: p}]}
=> 2: `proxy.credentials[0].repositories[0]` is "a/B"; write a repository's name at the upstream, of lower-case letters, digits and . _ - /, or * and ** for any of them, such as owner/**
proxy: {anonymous: true, credentials: [{repositories: [a/*]}]}
=> 2: `proxy.credentials[0].username` is missing; write it and `password`, or `usernamefile` and `passwordfile`, `dockerconfig` or `exec`
proxy: {upstreams: [{name: a.b, remoteurl: 'http://a', anonymous: true, credentials: [{repositories: [a/*], username: u, password: p}]}]}
=> 2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.upstreams[0].plainhttp: true` to permit it
proxy: {caonly: true}
=> 2: `proxy.caonly` is true, but `proxy.ca` isn't set: no certificate would be trusted
proxy: {minimumtls: tls1.1}
=> 2: `proxy.minimumtls` is "tls1.1"; write tls1.2 or tls1.3
proxy: {proxyurl: 'user:hunter2@proxy'}
=> 2: `proxy.proxyurl` is not the URL of a proxy; write one such as http://proxy.example:3128 (http, https, socks5 or socks5h; without a path), or none
proxy: {ttl: -1h}
=> 2: `proxy.ttl` is "-1h"; it must not be negative
proxy: {ttl: 101years}
=> 2: `proxy.ttl` is "101years"; it must be at most 100 years
proxy: {tags: {staleiferror: never}}
=> 2: `proxy.tags.staleiferror` is "never"; it must be a duration, such as 500ms, 60s, 1h30m or 7days; or write unlimited
proxy: {tags: {stalewhilerevalidate: 5}}
=> 2: `proxy.tags.stalewhilerevalidate` is "5"; it needs a unit, such as 60s, 10m or 168h
proxy: {tags: {rules: [{immutable: true}]}}
=> 2: `proxy.tags.rules[0].tag` is missing; write a pattern such as v*, or repository, or semver: true
proxy: {tags: {rules: [{tag: v*}]}}
=> 2: `proxy.tags.rules[0].ttl` is missing; write one of immutable, offline, ttl, stalewhilerevalidate or staleiferror
proxy: {tags: {rules: [{tag: a/b, immutable: true}]}}
=> 2: `proxy.tags.rules[0].tag` is "a/b"; write a tag of letters, digits and . _ -, or * for any of them, such as v*
proxy: {tags: {rules: [{repository: A, immutable: true}]}}
=> 2: `proxy.tags.rules[0].repository` is "A"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy: {tags: {rules: [{tag: v*, immutable: true, offline: true}]}}
=> 2: `proxy.tags.rules[0].immutable` and `offline` are both true; keep one
proxy: {tags: {rules: [{tag: v*, immutable: true, ttl: 1h}]}}
=> 2: `proxy.tags.rules[0].ttl` is "1h", which has no effect on tags that are immutable or offline; remove it
proxy: {keepfresh: {images: ['a:']}}
=> 2: `proxy.keepfresh.images[0]` is "a:"; after the colon, write a tag of letters, digits and . _ -, or * for any of them, such as library/debian:bookworm*
proxy: {keepfresh: {windows: ['22-6']}}
=> 2: `proxy.keepfresh.windows[0]` is "22-6"; write the times of a day from and to, such as 22:00-06:00
proxy: {keepfresh: {utcoffset: 2}}
=> 2: `proxy.keepfresh.utcoffset` is "2"; write the offset from UTC from -23:59 to +23:59, such as +02:00
proxy: {keepfresh: {platforms: [amd64]}}
=> 2: `proxy.keepfresh.platforms[0]` is "amd64"; write os/architecture or os/architecture/variant, such as linux/arm64
proxy: {negativettl: 5}
=> 2: `proxy.negativettl` is "5"; it needs a unit, such as 60s, 10m or 168h
proxy: {tags: {ttl: soon}}
=> 2: `proxy.tags.ttl` is "soon"; it must be a duration, such as 500ms, 60s, 1h30m or 7days
proxy: {stalltimeout: 0}
=> 2: `proxy.stalltimeout` must be more than 0
proxy: {remoteurl: ghcr.io}
=> 2: `proxy.remoteurl` is "ghcr.io"; write a URL such as https://registry-1.docker.io
proxy: {remoteurl: 'ftp://a'}
=> 2: `proxy.remoteurl` is "ftp://a"; write a URL such as https://registry-1.docker.io
proxy: {remoteurl: 'https://a/b'}
=> 2: `proxy.remoteurl` is "https://a/b"; write only the scheme, host and port
proxy: {remoteurl: 'https://u:hunter2@a'}
=> 2: `proxy.remoteurl` contains an @; write the credentials as `username` and `password` beside it
proxy:
  username: u
=> 3: `proxy.username` is set, but `proxy.password` isn't; write both or none
proxy:
  password: hunter2
=> 3: `proxy.password` is set, but `proxy.username` isn't; write both or none
proxy: {username: 'u:v', password: hunter2}
=> 2: `proxy.username` contains a colon, which would separate it from the password; remove it
proxy: {aliases: ['https://a']}
=> 2: `proxy.aliases[0]` is "https://a"; write host or host:port
proxy: {upstreams: [{remoteurl: 'https://a'}]}
=> 2: `proxy.upstreams[0].name` is missing; write one such as ghcr.io
proxy: {upstreams: [{name: ghcr.io}]}
=> 2: `proxy.upstreams[0].remoteurl` is missing; write the upstream's URL
proxy: {upstreams: [{name: 'a.b:5', remoteurl: 'https://a'}]}
=> 2: `proxy.upstreams[0].name` is "a.b:5"; write lower-case letters and digits, separated by one of . _ - and without a slash or port, such as ghcr.io
proxy:
  upstreams:
  - {name: a.b, remoteurl: 'https://a'}
  - {name: a.b, remoteurl: 'https://c'}
=> 5: `proxy.upstreams[0]` and `proxy.upstreams[1]` are both named `a.b`
proxy:
  upstreams:
  - {name: a.b, remoteurl: 'https://a'}
  - {name: c.d, remoteurl: 'https://c', aliases: [A]}
=> 5: the upstreams `a.b` and `c.d` both answer to `a`; give it to one
proxy:
  upstreams:
  - {name: a.b, remoteurl: 'https://a', aliases: [b]}
  - {name: c.d, remoteurl: 'https://a', aliases: [B]}
=> 5: the upstreams `a.b` and `c.d` both answer to `b`; give it to one
proxy: {remoteurl: 'http://a', anonymous: true, username: u, password: p}
=> 2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.plainhttp: true` to permit it
proxy: {insecure: true, upstreams: [{name: a.b, remoteurl: 'http://a', anonymous: true, username: u, password: p, insecure: true}]}
=> 2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.upstreams[0].plainhttp: true` to permit it
proxy: {authorize: user}
=> 2: `proxy.authorize` is "user"; write shared or caller
proxy: {remoteurl: 'http://a', authorize: caller}
=> 2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.plainhttp: true` to permit it
proxy: {anonymous: true, accounts: [{username: u, password: p}]}
=> 2: `proxy.accounts` holds further accounts; write one of them as `username` and `password` beside it
proxy: {anonymous: true, username: u, password: p, accounts: [{}]}
=> 2: `proxy.accounts[0].username` is missing; write it and `password`, or `usernamefile` and `passwordfile`, `dockerconfig` or `exec`
proxy: {anonymous: true, username: u, password: p, accounts: [{exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}, {exec: {command: x}}]}
=> 2: `proxy.accounts` has 17 items; write at most 16
proxy: {ratelimit: {reserve: 101%}}
=> 2: `proxy.ratelimit.reserve` is "101%"; write a number of requests, or a percentage of the limit from 0% to 100%
proxy: {ratelimit: {reserve: half}}
=> 2: `proxy.ratelimit.reserve` is "half"; write a number of requests, or a percentage of the limit from 0% to 100%
proxy: {ratelimit: {requests: 10001}}
=> 2: `proxy.ratelimit.requests` is "10001"; write a whole number from 0 to 10000
proxy: {ratelimit: {burst: 0}}
=> 2: `proxy.ratelimit.burst` is "0"; write a whole number from 1 to 10000
proxy: {endpointselection: fastest}
=> 2: `proxy.endpointselection` is "fastest"; write order or latency
proxy: {endpoints: [{url: 'https://u:p@m'}]}
=> 2: `proxy.endpoints[0].url` contains an @; write the credentials as `username` and `password` beside it
proxy: {endpoints: [{url: 'https://m/v2'}]}
=> 2: `proxy.endpoints[0].url` is "https://m/v2"; write only the scheme, host and port
proxy: {endpoints: [{url: 'https://m', prefix: /hub}]}
=> 2: `proxy.endpoints[0].prefix` is "/hub"; write the part of the path before the repository's name, such as hub-proxy
proxy: {endpoints: [{url: 'https://m', weight: 101}]}
=> 2: `proxy.endpoints[0].weight` is "101"; write a whole number from 0 to 100
proxy: {endpoints: [{username: u}]}
=> 2: unknown key `proxy.endpoints[0].username`; did you mean `proxy.username`?
proxy: {remoteurl: 'https://a', endpoints: [{url: 'https://a:443/'}]}
=> 2: `proxy.endpoints[0].url` is the upstream's own `remoteurl`; leave it out, so that the keys beside `remoteurl` apply
proxy: {endpoints: [{url: 'https://m', prefix: a}, {}, {url: 'https://m', prefix: a}]}
=> 2: `proxy.endpoints` has `m/a` twice; keep one
proxy: {endpoints: [{prefix: a}, {prefix: b}, {prefix: c}, {prefix: d}, {prefix: e}, {prefix: f}, {prefix: g}, {prefix: h}, {prefix: i}, {prefix: j}, {prefix: k}, {prefix: l}, {prefix: m}, {prefix: n}, {prefix: o}, {prefix: p}, {prefix: q}]}
=> 2: `proxy.endpoints` has 17 items; write at most 16
proxy: {anonymous: true, endpoints: [{url: 'http://m', username: u, password: p}]}
=> 2: the credentials for m would be sent over plain HTTP; use an https:// URL, or write `proxy.endpoints[0].plainhttp: true` to permit it
proxy: {authorize: caller, endpoints: [{url: 'https://m'}]}
=> 2: `proxy.endpoints` can't be used with `authorize: caller`: who may read a repository is the decision of one registry, and the passwords of clients would go to every endpoint; remove one of the two
proxy: {authorize: caller, upstreams: [{name: a.b, remoteurl: 'http://a'}]}
=> 2: the credentials for a would be sent over plain HTTP; use an https:// URL, or write `proxy.upstreams[0].plainhttp: true` to permit it
proxy: {authorize: caller, certificate: Cargo.toml, key: Cargo.toml}
=> 2: `proxy.certificate` is an identity of the mirror's, which every client would use with `authorize: caller`; remove it
proxy: {trust: 'our own'}
=> 2: `proxy.trust` is "our own"; write a name without blanks, of at most 64 characters
proxy: {realm: auth.example}
=> 2: `proxy.realm` is "auth.example"; write a URL such as https://auth.example.com/token
proxy: {realm: 'https://u:secret@auth.example'}
=> 2: `proxy.realm` contains an @; write the credentials as `username` and `password` beside it
proxy: {realm: 'http://auth.example/'}
=> 2: `proxy.realm` is "http://auth.example/"; credentials would be sent there over plain HTTP: use an https:// URL, or write `proxy.plainhttp: true` to permit it
proxy: {scope: 'ä'}
=> 2: `proxy.scope` is "ä"; write a scope such as repository:{name}:pull
proxy: {redirects: [cdn.example, 'https://cdn.example']}
=> 2: `proxy.redirects[1]` is "https://cdn.example"; a host pattern is a host without scheme and port, *.domain or *
http: {addr: @}
=> 2: the file is not valid YAML: found character that cannot start any token at line 2 column 14, while scanning for the next token
proxy: {ttlmode: rolling}
=> 2: `proxy.ttlmode` is "rolling"; write sliding or fixed
proxy: {ttls: {repository: a, ttl: 1h}}
=> 2: `proxy.ttls` must be a list
proxy: {ttls: [{repositry: a/b, ttl: 1h, repository: a/b}]}
=> 2: unknown key `proxy.ttls[0].repositry`; did you mean `proxy.ttls[0].repository`?
proxy:
  ttls:
  - ttl: 1h
=> 4: `proxy.ttls[0].repository` is missing; write a pattern such as library/*
proxy:
  ttls:
  - repository: a/b
=> 4: `proxy.ttls[0].ttl` is missing; write one such as 24h, or 0 for ever
proxy:
  ttls:
  - repository: a/b
    ttl: 24
=> 5: `proxy.ttls[0].ttl` is "24"; it needs a unit, such as 60s, 10m or 168h
proxy:
  ttls:
  - repository: a/[bc]
    ttl: 24h
=> 4: `proxy.ttls[0].repository` is "a/[bc]"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy:
  ttls:
  - repository: a/b:c
    ttl: 24h
=> 4: `proxy.ttls[0].repository` is "a/b:c"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy:
  upstreams:
  - name: ghcr.io
    remoteurl: https://ghcr.io
    ttl: soon
=> 6: `proxy.upstreams[0].ttl` is "soon"; it must be a duration, such as 500ms, 60s, 1h30m or 7days
proxy: {pins: a/b}
=> 2: `proxy.pins` must be a list
proxy: {pins: ['']}
=> 2: `proxy.pins[0]` is ""; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy: {pins: [':latest']}
=> 2: `proxy.pins[0]` is ":latest"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy: {pins: ['a/B']}
=> 2: `proxy.pins[0]` is "a/B"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy: {pins: ['a/b:B*', 'a/b:']}
=> 2: `proxy.pins[1]` is "a/b:"; after the colon, write a tag of letters, digits and . _ -, or * for any of them, such as library/debian:bookworm*
proxy: {pins: ['localhost:5000/a']}
=> 2: `proxy.pins[0]` is "localhost:5000/a"; after the colon, write a tag of letters, digits and . _ -, or * for any of them, such as library/debian:bookworm*
storage: {maxsize: 200G}
=> 2: `storage.maxsize` is "200G"; it must be a size, such as 200GiB or 1.5TB, or a whole percentage of the file system, such as 80%
storage: {maxsize: -1GiB}
=> 2: `storage.maxsize` is "-1GiB"; it must not be negative
storage: {maxsize: 0}
=> 2: `storage.maxsize` must be more than 0; without the key, there is no cap
storage: {maxsize: 0%}
=> 2: `storage.maxsize` is "0%"; it must be a percentage from 1% to 100%
storage: {maxsize: 9999999TiB}
=> 2: `storage.maxsize` is "9999999TiB"; it must be at most 1048576TiB
storage: {minfree: 100%}
=> 2: `storage.minfree` is "100%"; it must be a percentage from 0% to 99%
storage: {inmemory: , minfree: 5%}
=> 2: `storage.minfree` is "5%", but `storage.inmemory` uses no file system; write a size such as 4GiB
storage: {scrub: 30days}
=> 2: `storage.scrub` must be a map of keys
storage: {scrub: {interval: 30}}
=> 2: `storage.scrub.interval` is "30"; it needs a unit, such as 60s, 10m or 168h
storage: {scrub: {rate: 20M}}
=> 2: `storage.scrub.rate` is "20M"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes
storage: {scrub: {interval: 1h, rate: 0}}
=> 2: `storage.scrub.rate` must be more than 0; `storage.scrub.interval: 0` turns the check off
proxy:
  segments:
    minsize: 64M
=> 4: `proxy.segments.minsize` is "64M"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes
proxy:
  segments:
    count: 0
=> 4: `proxy.segments.count` is "0"; write a whole number from 1 to 16
proxy: {segments: {count: 17}}
=> 2: `proxy.segments.count` is "17"; write a whole number from 1 to 16
proxy: {segments: {count: +4}}
=> 2: `proxy.segments.count` is "+4"; write a whole number from 1 to 16
proxy: {segments: {perblob: 65}}
=> 2: `proxy.segments.perblob` is "65"; write a whole number from 1 to 64
proxy:
  segments:
    count: 5
    perblob: 4
=> 5: `proxy.segments.perblob` is 4, less than `proxy.segments.count`; write at least 5
proxy: {segments: {countt: 5}}
=> 2: unknown key `proxy.segments.countt`; did you mean `proxy.segments.count`?
proxy: {segments: 4}
=> 2: `proxy.segments` must be a map of keys
proxy: {perupstream: 4}
=> 2: unknown key `proxy.perupstream`; did you mean `proxy.streams.perupstream`?
proxy: {streams: {total: 4097}}
=> 2: `proxy.streams.total` is "4097"; write a whole number from 1 to 4096
proxy: {streams: {total: many}}
=> 2: `proxy.streams.total` is "many"; write a whole number from 1 to 4096
proxy: {streams: {perupstream: 1025}}
=> 2: `proxy.streams.perupstream` is "1025"; write a whole number from 1 to 1024
proxy:
  streams:
    perupstream: 129
=> 4: `proxy.streams.perupstream` is 129, more than `proxy.streams.total`; write at most 128
proxy:
  maxblobsize: 0
=> 3: `proxy.maxblobsize` must be more than 0; 1 byte caches no blobs
proxy:
  minspeed: 1KiB/s
=> 3: `proxy.minspeed` is "1KiB/s"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes
proxy: {prefetch: {downloads: 65}}
=> 2: `proxy.prefetch.downloads` is "65"; write a whole number from 0 to 64
proxy: {prefetch: {downloads: 99999999999999999999999}}
=> 2: `proxy.prefetch.downloads` is "99999999999999999999999"; write a whole number from 0 to 64
proxy: {onabandon: stop}
=> 2: `proxy.onabandon` is "stop"; write finish or pause, or remove the key to decide by the amount downloaded
proxy: {ranges: through}
=> 2: `proxy.ranges` is "through"; write fill or passthrough
proxy:
  rangerules:
  - ranges: fill
=> 4: `proxy.rangerules[0].repository` is missing; write a pattern such as library/*
proxy:
  rangerules:
  - repository: a/b
=> 4: `proxy.rangerules[0].ranges` is missing; write fill or passthrough
proxy:
  rangerules:
  - repository: a/b
    ranges: on
=> 5: `proxy.rangerules[0].ranges` is "on"; write fill or passthrough
proxy:
  rangerules:
  - repository: a/B
    ranges: fill
=> 4: `proxy.rangerules[0].repository` is "a/B"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
proxy: {rangerules: [{repository: a/b, range: fill, ranges: fill}]}
=> 2: unknown key `proxy.rangerules[0].range`; did you mean `proxy.rangerules[0].ranges`?
proxy: {offline: true, authorize: caller}
=> 2: `proxy.offline` needs `authorize: shared`: an upstream that isn't asked permits no caller anything
proxy: {fillafter: 0%}
=> 2: `proxy.fillafter` is "0%"; write a whole percentage from 1% to 100%, such as 50%
hosted: [{repositories: [a/**]}]
=> 2: `hosted[0].name` is missing; write one such as ci
hosted: [{name: a/b, repositories: [a/**]}]
=> 2: `hosted[0].name` is "a/b"; write lower-case letters and digits, separated by one of . _ -, such as ci
hosted: [{name: a}]
=> 2: `hosted[0].repositories` is missing; write patterns such as ["ci/**"]
hosted: [{name: a, repositories: []}]
=> 2: `hosted[0].repositories` needs a pattern such as ci/**
hosted: [{name: a, repositories: [A]}]
=> 2: `hosted[0].repositories[0]` is "A"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**
hosted: [{name: a, repositories: [a/**]}, {name: a, repositories: [b/**]}]
=> 2: `hosted[1].name` is a, as another one's
hosted: [{name: a, repositories: [a/**], quota: 0}]
=> 2: `hosted[0].quota` must be more than 0
hosted: [{name: a, repositories: [a/**], quota: 5G}]
=> 2: `hosted[0].quota` is "5G"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes
hosted: [{name: a, repositories: [a/**], maxblob: 0}]
=> 2: `hosted[0].maxblob` must be more than 0
hosted: [{name: a, repositories: [a/**], grace: 0}]
=> 2: `hosted[0].grace` must be more than 0
hosted: [{name: a, repositories: [a/**], untagged: 0}]
=> 2: `hosted[0].untagged` is "0"; write keep, or a time such as 30days
hosted: [{name: a, repositories: [a/**], incomplete: yes}]
=> 2: `hosted[0].incomplete` is "yes"; write refuse or allow
hosted: [{name: a, repositories: [a/**], immutable: [a/b]}]
=> 2: `hosted[0].immutable[0]` is "a/b"; write a tag of letters, digits and . _ -, or * for any of them, such as v*
hosted: [{name: a, repositories: [a/**], uploads: {max: 0}}]
=> 2: `hosted[0].uploads.max` is "0"; write a whole number from 1 to 100000
hosted: [{name: a, repositories: [a/**], uploads: {ttl: 0}}]
=> 2: `hosted[0].uploads.ttl` must be more than 0
hosted: [{name: a, repositories: [a/**], sync: never}]
=> 2: `hosted[0].sync` is "never"; write manifest or blob
storage: {delete: {enabled: false}}
hosted: [{name: a, repositories: [a/**], delete: true}]
=> 3: `hosted[0].delete` contradicts `storage.delete.enabled`, which is false
storage: {maintenance: {readonly: {enabled: true}}}
hosted: [{name: a, repositories: [a/**], readonly: false}]
=> 3: `hosted[0].readonly` contradicts `storage.maintenance.readonly.enabled`, which is true
storage: {maintenance: {uploadpurging: {enabled: false}}}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `storage.maintenance.uploadpurging.enabled` is false, but uploads always end; write `hosted[].uploads.ttl` for a long time
storage: {maintenance: {uploadpurging: {dryrun: true}}}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `storage.maintenance.uploadpurging.dryrun` is not supported: uploads would never end
validation: {manifests: {urls: {allow: ['^https://']}}}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `validation` is not supported: the URLs of layers and the platforms of indexes can't be restricted; remove `manifests` (with `incomplete: allow` in an item of `hosted`, an index may lack manifests)
policy: {repository: {classes: [image]}}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `policy` is not supported: every kind of content can be pushed; remove it
http: {secret: hunter2}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `http.secret` is not supported: the state of an upload isn't in its URL, whose id can't be guessed; remove it
proxy: {remoteurl: none}
=> 2: `proxy.remoteurl` is none, but nothing is hosted; write `hosted`, such as [{name: ci, repositories: ["ci/**"]}]
proxy: {remoteurl: none, upstreams: [{name: a.b, remoteurl: 'https://a'}]}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `proxy.upstreams` has no effect with `proxy.remoteurl: none`; remove one of them
http: {aliases: ['https://a']}
=> 2: `http.aliases[0]` is "https://a"; write host or host:port
proxy: {fillafter: 50}
=> 2: `proxy.fillafter` is "50"; write a whole percentage from 1% to 100%, such as 50%
replicas: {peers: [10.0.0.1], secret: 0123456789abcdef}
=> 2: `replicas.peers[0]` is "10.0.0.1"; write host:port, such as millpond.default.svc:5000
replicas: {peers: ':5000', secret: 0123456789abcdef}
=> 2: `replicas.peers` is ":5000"; write host:port, such as millpond.default.svc:5000
replicas: {peers: ['a:1', 'A:1'], secret: 0123456789abcdef}
=> 2: `replicas.peers[1]` is "A:1"; it is listed twice; keep one
replicas: {peers: ['a:1', 'a:2', 'a:3', 'a:4', 'a:5', 'a:6', 'a:7', 'a:8', 'a:9', 'a:10', 'a:11', 'a:12', 'a:13', 'a:14', 'a:15', 'a:16', 'a:17', 'a:18', 'a:19', 'a:20', 'a:21', 'a:22', 'a:23', 'a:24', 'a:25', 'a:26', 'a:27', 'a:28', 'a:29', 'a:30', 'a:31', 'a:32', 'a:33', 'a:34', 'a:35', 'a:36', 'a:37', 'a:38', 'a:39', 'a:40', 'a:41', 'a:42', 'a:43', 'a:44', 'a:45', 'a:46', 'a:47', 'a:48', 'a:49', 'a:50', 'a:51', 'a:52', 'a:53', 'a:54', 'a:55', 'a:56', 'a:57', 'a:58', 'a:59', 'a:60', 'a:61', 'a:62', 'a:63', 'a:64', 'a:65'], secret: 0123456789abcdef}
=> 2: `replicas.peers` has 65 replicas; write at most 64
replicas: {peers: ['a:1', 'b:1'], self: 'c:1', secret: 0123456789abcdef}
=> 2: `replicas.self` is c:1, which `replicas.peers` lacks
replicas: {peers: ['a:1'], self: a, secret: 0123456789abcdef}
=> 2: `replicas.self` is "a"; write this server's own entry of `replicas.peers`, host:port
replicas: {peers: 'a:1', self: 'b:1', secret: 0123456789abcdef}
=> 2: `replicas.self` is b:1; where `peers` is a name, write this server's address and port
replicas:
  secret: 0123456789abcdef
=> 2: `replicas.peers` is missing; write the replicas, such as millpond.default.svc:5000
replicas: {peers: 'a:1'}
=> 2: `replicas.secret` is missing; write a secret of at least 16 characters that all replicas share
replicas: {peers: 'a:1', secret: short}
=> 2: `replicas.secret` is shorter than 16 characters
replicas: {peers: 'a:1', secret: 0123456789abcdef, timeout: 0}
=> 2: `replicas.timeout` must be from 10ms to 1m
replicas: {peers: 'a:1', secret: 0123456789abcdef, servername: 'a:1'}
=> 2: `replicas.servername` is "a:1"; write the name in the replicas' certificates, such as millpond.example
replicas: {peers: 'a:1', secret: 0123456789abcdef, hostedwriter: 'b:1'}
hosted: [{name: a, repositories: [a/**]}]
=> 3: `hosted` with `replicas` needs a bucket: what is pushed would be on the disk of one replica only; remove one of the two
replicas: {hostedwriter: 'b:1'}
=> 2: `replicas.peers` is missing; write the replicas, such as millpond.default.svc:5000
replicas: {peers: 'a:1', secret: 0123456789abcdef, hostedwriter: b}
=> 2: `replicas.hostedwriter` is "b"; write host:port of one replica, such as millpond-0.millpond.default.svc:5000
replicas: {peers: 'a:1', secret: 0123456789abcdef, hostedwriter: 'A:1'}
=> 2: `replicas.hostedwriter` is a:1, as `replicas.peers`, which names all replicas; write host:port of one replica, such as millpond-0.millpond.default.svc:5000
replicas: {peers: ['a:1', 'b:1'], secret: 0123456789abcdef, hostedwriter: 'c:1'}
=> 2: `replicas.hostedwriter` is c:1, which `replicas.peers` lacks
replicas: {peers: ['[fd00::1]:1', 'b:1'], secret: 0123456789abcdef, hostedwriter: '[FD00:0::1]:1'}
=> 2: `replicas.hostedwriter` is [fd00:0::1]:1, which `replicas.peers` has as [fd00::1]:1; write it the same
replicas: {peers: 'a:1', secret: 0123456789abcdef}
http: {tls: {certificate: c, key: k, clientcas: [a]}}
=> 3: `http.tls.clientauth` requires certificates, which replicas don't show each other; write verify-client-cert-if-given, or remove `replicas`
storage: {s3: {bucket: abc, region: r1}}
=> 2: `storage.filesystem.rootdirectory` is missing; write the data directory: the bucket `storage.s3` is a second tier behind it
storage: {inmemory: , gcs: {bucket: abc}}
=> 2: `storage.gcs` can't be used with `storage.inmemory`: the bucket is a second tier behind a data directory; write `storage.filesystem.rootdirectory`
storage:
  filesystem: {rootdirectory: a}
  s3: {bucket: abc, region: r1}
  gcs: {bucket: abc}
proxy: {remoteurl: 'https://a'}
=> 5: `storage.gcs` and `storage.s3` are two buckets; keep one
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, s3aws: {bucket: abc, region: r1}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3aws` and `storage.s3` are two buckets; keep one
storage: {filesystem: {rootdirectory: a}, s3: {region: r1}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.bucket` is missing; write the bucket's name
storage: {filesystem: {rootdirectory: a}, s3: {bucket: Images, region: r1}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.bucket` is "Images"; write the bucket's name: 3 to 63 lower-case letters, digits and . -, with a letter or digit at both ends, such as images
storage: {filesystem: {rootdirectory: a}, s3: {bucket: 10.0.0.1, region: r1}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.bucket` is "10.0.0.1"; write the bucket's name: 3 to 63 lower-case letters, digits and . -, with a letter or digit at both ends, such as images
storage: {filesystem: {rootdirectory: a}, s3: {bucket: a--use1-az4--x-s3, region: r1}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.bucket` is "a--use1-az4--x-s3"; directory buckets (S3 Express One Zone) aren't supported
storage: {filesystem: {rootdirectory: a}, s3: {bucket: a/b, regionendpoint: 'http://b'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.bucket` is "a/b"; write the bucket's name: 3 to 255 letters, digits and . _ -, such as images
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.region` is missing; write the bucket's region, such as eu-west-1, or `regionendpoint` for a server that isn't Amazon's
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: a/b}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.region` is "a/b"; write a region such as eu-west-1
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: a}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.accesskey` is set, but `storage.s3.secretkey` isn't; write both or none
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, secretkey: hunter2}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.secretkey` is set, but `storage.s3.accesskey` isn't; write both or none
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, sessiontoken: hunter2}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.sessiontoken` is set, but `storage.s3.accesskey` isn't; write both or none
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: 'a b', secretkey: c}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.accesskey` must be printable ASCII text without blanks and line breaks
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: a, secretkey: "hunter2\n"}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.secretkey` must be printable ASCII text without blanks and line breaks
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, secure: false}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.secure` is false, but `regionendpoint` isn't set: Amazon's servers are asked over TLS; remove it, or write `regionendpoint`
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'http://u:hunter2@a'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.regionendpoint` holds more than an address; write credentials as `accesskey` and `secretkey`
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'ftp://a'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.regionendpoint` is "ftp://a"; write a URL such as https://objects.example:9000
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'http://10.0.0.1:9000', forcepathstyle: false}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.forcepathstyle` is false, but `regionendpoint` has an address, and the bucket's name can't be put in front of one; remove it
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, rootdirectory: a/../b}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.rootdirectory` is "a/../b"; write a path of letters, digits and . _ - = @ + :, such as registry/images
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, chunksize: 4MiB}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.chunksize` must be from 5MiB to 5GiB
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, chunksize: 6GiB}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.chunksize` must be from 5MiB to 5GiB
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, storageclass: GLACIER}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.storageclass` is "GLACIER"; write STANDARD, NONE, REDUCED_REDUNDANCY, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or GLACIER_IR
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, encrypt: true, keyid: "a b"}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.keyid` is "a b"; write the id or the ARN of a key
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, v4auth: false}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.v4auth` is not supported: requests are signed with version 4
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accelerate: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.accelerate` is not supported: write `regionendpoint: https://s3-accelerate.amazonaws.com` and `forcepathstyle: false`
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, usedualstack: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.usedualstack` is not supported: write `regionendpoint: https://s3.dualstack.REGION.amazonaws.com`
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, usefipsendpoint: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.usefipsendpoint` is not supported: write `regionendpoint: https://s3-fips.REGION.amazonaws.com`
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, objectacl: public-read}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.objectacl` is not supported: objects have the bucket's default ACL; remove it, and let the bucket's owner own all objects (`BucketOwnerEnforced`)
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, buket: x}}
proxy: {remoteurl: 'https://a'}
=> 2: unknown key `storage.s3.buket`; did you mean `storage.s3.bucket`?
storage: {filesystem: {rootdirectory: a}, gcs: {keyfile: Cargo.toml}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.bucket` is missing; write the bucket's name
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: a..b}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.bucket` is "a..b"; write the bucket's name: 3 to 222 lower-case letters, digits and . _ -, with a letter or digit at both ends, such as images
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc, chunksize: 256KiB}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.chunksize` must be from 5MiB to 5GiB
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc, keyfile: Cargo.toml, credentials: {client_email: e, private_key: k, private_key_id: i}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.credentials` and `storage.gcs.keyfile` are two sources of credentials; keep one
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc, credentials: {type: authorized_user, refresh_token: hunter2}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.credentials` isn't the key of a service account; for other credentials, set GOOGLE_APPLICATION_CREDENTIALS to their file
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc, credentials: {client_email: e, private_key: hunter2}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.credentials` lacks `private_key_id`; write the keys of a service account's JSON file
storage: {filesystem: {rootdirectory: a}, azure: {container: abc}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.accountname` is missing; write the storage account's name
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.container` is missing; write the container's name
storage: {filesystem: {rootdirectory: a}, azure: {accountname: a-b, container: abc}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.accountname` is "a-b"; write the storage account's name: 3 to 24 lower-case letters and digits
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: a--b}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.container` is "a--b"; write the container's name: 3 to 63 lower-case letters, digits and single -, with a letter or digit at both ends, such as images
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, realm: 'https://a'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.realm` is "https://a"; write the end of the service's host, such as core.chinacloudapi.cn
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, serviceurl: 'https://a/?sig=hunter2'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.serviceurl` holds more than an address; write credentials as `accountkey`
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, serviceurl: 'http://a'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.serviceurl` is an http:// URL: tokens would be sent over plain HTTP; write an https:// URL
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, chunksize: 5GiB}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.chunksize` must be from 5MiB to 4000MiB
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, connectionstring: hunter2}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.connectionstring` is not supported: write its parts as `accountname`, `accountkey` and `serviceurl`
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {type: cli}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.credentials.type` is "cli"; write shared_key, client_secret or default_credentials
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {type: shared_key}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.accountkey` is missing; write a key of the storage account
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t, secret: hunter2}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.credentials.clientid` is missing; write the id of the application
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t/x, clientid: c, secret: hunter2}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.credentials.tenantid` is "t/x"; write an id
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, accountkey: hunter2, credentials: {type: default_credentials}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.accountkey` and `storage.azure.credentials` are two sources of credentials; keep one
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, accountkey: hunter2, credentials: {type: shared_key, clientid: c}}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.credentials.type` isn't client_secret, but `tenantid`, `clientid` or `secret` is set; keep one source of credentials
storage: {shared: {redirect: busy}}
=> 2: `storage.shared.redirect` needs a bucket; write `storage.s3`, `storage.gcs` or `storage.azure`, or remove it
storage: {shared: {redirect: sometimes}}
=> 2: `storage.shared.redirect` is "sometimes"; write never, busy or always
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {timeout: 50ms}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.timeout` must be from 100ms to 1m
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {timeout: 61s}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.timeout` must be from 100ms to 1m
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {redirect: busy, redirectabove: 0}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.redirectabove` is "0"; write a whole number from 1 to 1000000
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {maxsize: 80%}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.maxsize` is "80%"; write a size such as 10TiB: a bucket has no size of its own
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {maxsize: 0}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.maxsize` must be more than 0; without the key, there is no limit
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {maxsize: 10T}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.maxsize` is "10T"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {ttl: 30}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.ttl` is "30"; it needs a unit, such as 60s, 10m or 168h
"#;

/// What follows the version line, and below it the warning, which starts with `config.yml:`.
const WARNINGS: &str = r#"
http: {tls: {certificate: c, key: k, minimumtls: tls1.0}}
=> 2: `http.tls.minimumtls` names a version that RFC 8996 forbids: clients need at least TLS 1.2
http: {tls: {certificate: c, key: k, minimumtls: tls1.1}}
=> 2: `http.tls.minimumtls` names a version that RFC 8996 forbids: clients need at least TLS 1.2
http: {tls: {certificate: c, key: k, ciphersuites: [TLS_AES_128_GCM_SHA256, TLS_RSA_WITH_AES_128_GCM_SHA256]}}
=> 2: `http.tls.ciphersuites[1]` has no effect: the suite is not implemented, because it is broken or has no forward secrecy
proxy:
=> 2: `proxy.remoteurl` is not set: the default upstream is Docker Hub
loglevel: debug
=> 2: `loglevel` is deprecated; write `log.level`
auth: {oidc: [{issuer: 'https://gitlab.com', audience: b}]}
access: [{anyone: true, effect: allow}]
=> 2: `auth.oidc[0].issuer` issues tokens for everybody's projects: each of them is a user here; write `required` to name yours, such as { repository_owner: acme }
log: {hooks: [{type: mail}]}
=> 2: `log.hooks` has no effect: no mail is sent
log: {reportcaller: true}
=> 2: `log.reportcaller` has no effect: log lines don't name source code
storage:
  filesystem:
=> 3: `storage.filesystem.rootdirectory` is not set: data goes to ./millpond-data (the reference registry's default is /var/lib/registry)
storage: {filesystem: {rootdirectory: a, maxthreads: 100}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.filesystem.maxthreads` has no effect: the number of threads is not limited by it
storage: {redirect: {disable: true}}
=> 2: `storage.redirect` has no effect: blobs are never redirected to the storage
http: {secret: hunter2}
=> 2: `http.secret` has no effect: the state of an upload isn't in its URL, whose id can't be guessed; remove it
http: {h2c: {enabled: true}}
=> 2: `http.h2c` has no effect: HTTP/2 without TLS is governed by `http.http2.disabled`
http: {debug: {prometheus: {enabled: true}}}
=> 2: `http.debug.prometheus` has no effect: `http.debug.addr` is not set
tags: {maxtags: 1000}
=> 2: `tags.maxtags` has no effect: the size of a page of tags is built in
proxy: {remoteurl: 'https://a', cachewritetimeout: 5m}
=> 2: `proxy.cachewritetimeout` has no effect: `proxy.stalltimeout` ends a download that makes no progress
middleware: {registry: [{name: x, disabled: true, options: {a: b}}], storage: [{name: y, disabled: yes}]}
=> 2: `middleware` has no effect: all its entries are disabled
notifications: {endpoints: [{name: x}]}
=> 2: `notifications` has no effect: no events are sent
redis: {addr: x}
=> 2: `redis` has no effect: nothing is cached in Redis
validation: {disabled: true}
=> 2: `validation` has no effect: it concerns pushes, which a mirror refuses
proxy: {remoteurl: 'http://a', anonymous: true, username: u, password: p, plainhttp: true}
=> 2: the credentials for a are sent over plain HTTP
proxy: {remoteurl: 'https://a', authorize: caller, insecure: true}
=> 2: the credentials for a are sent to a server whose certificate isn't checked
proxy: {remoteurl: 'https://a', authorize: caller, username: u, password: p}
=> 2: `proxy.username` isn't used: with `authorize: caller` each client uses its own account
proxy: {remoteurl: 'https://a', anonymous: true, insecure: true, username: u, password: p}
=> 2: the credentials for a are sent to a server whose certificate isn't checked
proxy: {upstreams: [{name: team, remoteurl: 'https://a'}]}
=> 2: `proxy.upstreams[0].name` has no dot: the default upstream's repositories under `team/` share their place in the store with this upstream's
proxy:
  upstreams:
  - {name: hub.x, remoteurl: 'https://docker.io'}
=> 4: the upstreams `docker.io` and `hub.x` have the same host: `registry-1.docker.io` means `docker.io`, and clients select the other by its name; to change that, add `registry-1.docker.io` to the `aliases` of one of them
proxy:
  remoteurl: https://a.example
  upstreams:
  - {name: b.example, remoteurl: 'https://a.example'}
=> 5: the upstreams `a.example` and `b.example` have the same host: `a.example` means `a.example`, and clients select the other by its name; to change that, add `a.example` to the `aliases` of one of them
proxy: {remoteurl: 'https://registry-1.docker.io', pins: ['debian:bookworm']}
=> 2: `proxy.pins[0]` is "debian:bookworm", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian
proxy: {remoteurl: 'https://registry-1.docker.io', ttls: [{repository: docker.io/library/*, ttl: 1h}]}
=> 2: `proxy.ttls[0].repository` is "docker.io/library/*", which matches nothing: the default upstream's repositories are stored without its name; write library/*
proxy: {remoteurl: 'https://docker.io', tags: {rules: [{repository: debian, immutable: true}]}}
=> 2: `proxy.tags.rules[0].repository` is "debian", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian
proxy: {remoteurl: 'https://docker.io', rangerules: [{repository: debian, ranges: fill}]}
=> 2: `proxy.rangerules[0].repository` is "debian", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian
access: [{anyone: true, effect: allow}, {users: [a], effect: deny}]
=> 2: `access[1]` never decides: the rule at config.yml:2 matches all its requests
access: [{anyone: true, users: [a], effect: allow}]
=> 2: `access[0].anyone` makes the rule match every caller; the others that it names have no effect
access: [{repositories: [debian], effect: deny}]
=> 2: `access[0].repositories[0]` is "debian", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian
proxy: {remoteurl: 'https://registry-1.docker.io', anonymous: true}
access: [{anonymous: true, effect: deny}]
=> 2: `proxy.anonymous` has no effect: the rules of `access` decide what anonymous callers may do
hosted: [{name: a, repositories: ['**']}]
=> 2: `hosted[0].repositories[0]` covers every name: nothing is mirrored but for clients that send the upstream's name as `ns`; write a prefix such as ci/**
hosted: [{name: a, repositories: ['docker.io/**']}]
=> 2: `hosted[0].repositories[0]` covers the upstream's name docker.io: such repositories aren't mirrored
proxy: {remoteurl: 'https://a', upstreams: [{name: ghcr.io, remoteurl: 'https://ghcr.io'}]}
hosted: [{name: a, repositories: ['ghcr.*/x']}]
=> 3: `hosted[0].repositories[0]` covers the upstream's name ghcr.io: such repositories aren't mirrored
hosted: [{name: a, repositories: ['library/x']}]
=> 2: `hosted[0].repositories[0]` covers library/: Docker Hub's official images aren't mirrored
hosted: [{name: a, repositories: [a/**], grace: 1s}]
=> 2: `hosted[0].grace` is only 1s: it may end what a client is still pushing
hosted: [{name: a, repositories: [a/**], quota: 1GiB, maxblob: 2GiB}]
=> 2: `hosted[0].maxblob` has no effect: it is more than `quota`
hosted: [{name: a, repositories: [a/**], mutable: [x]}]
=> 2: `hosted[0].mutable` has no effect: no tag is `immutable`
storage: {maintenance: {uploadpurging: {interval: 24h}}}
hosted: [{name: a, repositories: [a/**]}]
=> 2: `storage.maintenance.uploadpurging.interval` has no effect: an upload ends when its time is over
storage: {maxsize: 200}
=> 2: `storage.maxsize` is only 200 bytes: hardly anything fits
storage: {inmemory: , minfree: 1GiB}
=> 2: `storage.minfree` has no effect: `storage.inmemory` uses no file system
replicas: {peers: 'a:1', secret: 0123456789abcdef, servername: a.example}
=> 2: `replicas.servername` has no effect: replicas speak TLS to each other only where `http.tls` is set
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, skipverify: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.skipverify` is true: requests are sent to a server whose certificate isn't checked
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'http://a', skipverify: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.skipverify` has no effect: `regionendpoint` begins with http://
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'https://a', secure: false}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.secure` has no effect: `regionendpoint` begins with https://
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, keyid: k}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.keyid` has no effect: `encrypt` isn't true
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, multipartcopychunksize: 33554432}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.multipartcopychunksize` has no effect: objects are copied by one request
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, useragent: x}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.useragent` has no effect: requests have millpond's own
storage: {filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, loglevel: debug}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.s3.loglevel` has no effect: `log.levels` says what is logged
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc, maxconcurrency: 75}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.gcs.maxconcurrency` has no effect: the number of requests isn't limited by it
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, max_retries: 3}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.max_retries` has no effect: how often requests are sent again is built in
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, realm: a.b, serviceurl: 'https://c'}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.realm` has no effect: `serviceurl` is set
storage: {filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, skipverify: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.azure.skipverify` is true: requests are sent to a server whose certificate isn't checked
storage: {shared: {ttl: 720h}}
=> 2: `storage.shared.ttl` has no effect: there is no bucket
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {ttl: 48h}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.ttl` is only 48h: content is written again at nearly every use
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {maxsize: 500}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.maxsize` is only 500 bytes: hardly anything fits
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {redirect: always, redirectabove: 7}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.redirectabove` has no effect: `redirect` isn't busy
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, shared: {redirectprivate: true}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.redirectprivate` has no effect: `redirect` is never
storage: {filesystem: {rootdirectory: a}, gcs: {bucket: abc}, redirect: {disable: true}, shared: {redirect: busy}}
proxy: {remoteurl: 'https://a'}
=> 2: `storage.shared.redirect` has no effect: `storage.redirect.disable` is true
replicas: {peers: 'a:1', secret: 0123456789abcdef, hostedwriter: 'b:1'}
=> 2: `replicas.hostedwriter` has no effect: nothing is `hosted`
"#;

/// The configuration and the message of each case of a table.
fn cases(table: &str) -> Vec<(String, String)> {
    let mut text = String::new();
    let mut cases = Vec::new();
    for line in table.trim_start().lines() {
        match line.strip_prefix("=> ") {
            Some(message) => {
                let text = std::mem::take(&mut text);
                let text = format!("version: 0.1\n{text}");
                cases.push((text, format!("config.yml:{message}")));
            }
            None => text.extend([line, "\n"]),
        }
    }
    cases
}

#[test]
fn problems_are_worded_as_listed() {
    for (text, expected) in cases(PROBLEMS) {
        assert_eq!(problems(&text, &[]), [expected], "{text}");
    }
    let version = "config.yml: `version` is missing; write `version: 0.1`";
    assert_eq!(problems("", &[]), [version]);
    let shared = "version: 0.1\nreplicas: {peers: 'a:1', secret: 0123456789abcdef}\n\
                  hosted: [{name: a, repositories: [a/**]}]";
    let found = problems(shared, &[]);
    let missing = "config.yml:2: `replicas.hostedwriter` is missing; write the one replica that writes what \
                   is `hosted`, host:port";
    assert_eq!(found.first().map(String::as_str), Some(missing));
    assert!(
        found.len() == 2 && found[1].contains("needs a bucket"),
        "{found:?}"
    );
    let version = "config.yml:1: `version` is \"0.10\"; only 0.1 is supported";
    assert_eq!(problems("version: 0.10", &[]), [version]);
    let found = problems("version: 0.1\nproxy: {ca: /nowhere/ca.pem}", &[]);
    let start = "config.yml:2: `proxy.ca` is \"/nowhere/ca.pem\"; it can't be read: ";
    assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}");
    for (key, other) in [("certificate", "key"), ("key", "certificate")] {
        let text = format!("version: 0.1\nproxy: {{{key}: Cargo.toml}}");
        let expected = format!(
            "config.yml:2: `proxy.{key}` is set, but `proxy.{other}` isn't; write both or none"
        );
        assert_eq!(problems(&text, &[]), [expected]);
    }
    for key in [
        "usernamefile",
        "passwordfile",
        "dockerconfig",
        "certificate",
        "key",
    ] {
        let text = format!("version: 0.1\nproxy: {{{key}: /nowhere/x}}");
        let found = problems(&text, &[]).join("\n");
        let start = format!("config.yml:2: `proxy.{key}` is \"/nowhere/x\"; it can't be read: ");
        assert!(found.contains(&start), "{found}");
    }
    let twice = "version: 0.1\nproxy: {anonymous: true, username: u, password: p, passwordfile: Cargo.toml}";
    let expected = "config.yml:2: `proxy.passwordfile` and `proxy.password` say the same; keep one";
    assert_eq!(problems(twice, &[]), [expected]);
    let pin = |half: usize| format!("version: 0.1\nproxy: {{pins: ['{}']}}", "a/".repeat(half));
    assert_eq!(problems(&pin(256), &[]), Vec::<String>::new());
    let found = problems(&pin(257), &[]);
    let end = "; a pattern is at most 512 bytes long";
    assert!(found.len() == 1 && found[0].ends_with(end), "{found:?}");
}

#[test]
fn all_problems_are_reported_at_once_up_to_a_limit() {
    let text =
        "version: 7\nhttp:\n  addr: x\n  tls: {certificate: y}\nproxy:\n  ttl: 5\n  username: u\n";
    let found = problems(text, &[("REGISTRY_LOG_LEVEL", "loud")]);
    // In the file's order; a variable has no line.
    let places: Vec<_> = found.iter().map(|text| text.split(": ").next()).collect();
    let expected = ["1", "3", "4", "6", "7"].map(|line| format!("config.yml:{line}"));
    assert_eq!(places[..5], expected.each_ref().map(|place| Some(&**place)));
    assert_eq!(places[5..], [Some("REGISTRY_LOG_LEVEL")]);
    let many: Vec<String> = (0..500).map(|number| format!("key{number}: x")).collect();
    assert_eq!(problems(&many.join("\n"), &[]).len(), 100);
}

#[test]
fn warnings_are_worded_as_listed() {
    const NO_UPSTREAM: &str = "`proxy.remoteurl` is not set";
    for (text, expected) in cases(WARNINGS) {
        let mut warnings = loaded(&text, &[]).warnings;
        if !expected.contains(NO_UPSTREAM) {
            warnings.retain(|warning| !warning.contains(NO_UPSTREAM));
        }
        assert_eq!(warnings, [expected], "{text}");
    }
    for text in [
        // Empty keys configure nothing.
        "auth:",
        "middleware: {registry: [], storage: }",
        "redis: {addr: ''}",
        "http: {tls: {certificate: '', letsencrypt: {}}}",
        // Which of two accounts a host means is clear.
        "proxy: {upstreams: [{name: a.b, remoteurl: 'https://a.b'}, {name: c.d, remoteurl: 'https://a.b'}]}",
        "proxy: {remoteurl: 'https://a.b', upstreams: [{name: c.d, remoteurl: 'https://a.b', aliases: [a.b]}]}",
        // A loopback connection shows no one a password.
        "proxy: {remoteurl: 'http://localhost:1', anonymous: true, username: u, password: p}",
        "proxy: {remoteurl: 'https://registry-1.docker.io', pins: ['**', '**an', 'a/*']}",
        // Only Docker Hub's images get a component.
        "proxy: {remoteurl: 'https://a.example', pins: ['debian']}",
    ] {
        let mut warnings = loaded(&format!("version: 0.1\n{text}\n"), &[]).warnings;
        warnings.retain(|warning| !warning.contains(NO_UPSTREAM));
        assert_eq!(warnings, Vec::<String>::new(), "{text}");
    }
}
