//! Environment variables, alone and over a file.

use super::{
    DISTRIBUTION, Loaded, RangeMode, download, environment, load, loaded, login, problems, storage,
};

/// A variable with its value, and a line of the printed configuration.
const VARIABLES: &str = "\
REGISTRY_LOG_LEVEL=DEBUG =>   level: debug
REGISTRY_LOGLEVEL=debug =>   level: debug
REGISTRY_LOG_FORMATTER=logstash =>   formatter: json
REGISTRY_LOG_FIELDS_SERVICE=mirror =>     service: mirror
REGISTRY_LOG_FIELDS_MY_SITE=mirror =>     my_site: mirror
REGISTRY_LOG_LEVELS_UPSTREAM=debug =>     upstream: debug
REGISTRY_LOG_ACCESSLOG_DISABLED=true =>     disabled: true
REGISTRY_LOG_ACCESSLOG_SAMPLE=100 =>     sample: 100
REGISTRY_LOG_ACCESSLOG_SLOW=1s =>     slow: 1s
REGISTRY_TRACING_ENDPOINT=http://a:4318 =>   endpoint: http://a:4318/v1/traces
REGISTRY_TRACING_ENDPOINT=https://a/b?c =>   endpoint: https://a/b?c
REGISTRY_TRACING_HEADERS_X_TEAM=secret =>     x-team: <hidden>
REGISTRY_TRACING_SAMPLE=1 =>   sample: 1.0
REGISTRY_TRACING_TIMEOUT=1s =>   timeout: 1s
REGISTRY_LOG_AUDIT_FILE=/a/b =>     file: /a/b
REGISTRY_LOG_AUDIT_STDERR=true =>     stderr: true
REGISTRY_ACCESS=[{anyone: true, effect: allow}] => - anyone: true
REGISTRY_DENY_IMAGES_0=a/b:* =>   - a/b:*
REGISTRY_DENY={digests: []} => deny:
REGISTRY_PROXY_ANONYMOUS=true =>   anonymous: true
REGISTRY_STORAGE=inmemory =>   inmemory: {}
REGISTRY_STORAGE_FILESYSTEM_MODE=0600 =>     mode: '0600'
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}} =>     bucket: abc
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}} =>     region: r1
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3aws: {bucket: abc, region: r1}} =>     bucket: abc
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'a:9000'}} =>     regionendpoint: https://a:9000/
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'a:9000'}} =>     forcepathstyle: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, regionendpoint: 'a:9000', secure: false}} =>     regionendpoint: http://a:9000/
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, rootdirectory: /a/b/}} =>     rootdirectory: a/b
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: a, secretkey: hunter2}} =>     accesskey: a
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: a, secretkey: hunter2}} =>     secretkey: <hidden>
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, accesskey: a, secretkey: hunter2, sessiontoken: hunter2}} =>     sessiontoken: <hidden>
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, forcepathstyle: true}} =>     forcepathstyle: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, skipverify: true}} =>     skipverify: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, encrypt: true}} =>     encrypt: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, encrypt: true, keyid: k}} =>     keyid: k
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, storageclass: standard_ia}} =>     storageclass: STANDARD_IA
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1, chunksize: 5242880}} =>     chunksize: 5MiB
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, gcs: {bucket: abc}} =>     bucket: abc
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, gcs: {bucket: abc, keyfile: Cargo.toml}} =>     keyfile: Cargo.toml
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, gcs: {bucket: abc, credentials: {client_email: e, private_key: hunter2, private_key_id: i}}} =>       private_key: <hidden>
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, gcs: {bucket: abc, rootdirectory: a}} =>     rootdirectory: a
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, gcs: {bucket: abc, chunksize: 8MiB}} =>     chunksize: 8MiB
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc}} =>     accountname: abc
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc}} =>     container: abc
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, accountkey: hunter2}} =>     accountkey: <hidden>
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, realm: core.chinacloudapi.cn}} =>     realm: core.chinacloudapi.cn
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, serviceurl: 'https://a/b'}} =>     serviceurl: https://a/b
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t, clientid: c, secret: hunter2}}} =>       type: client_secret
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t, clientid: c, secret: hunter2}}} =>       tenantid: t
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t, clientid: c, secret: hunter2}}} =>       clientid: c
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, credentials: {tenantid: t, clientid: c, secret: hunter2}}} =>       secret: <hidden>
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, skipverify: true}} =>     skipverify: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, rootdirectory: a}} =>     rootdirectory: a
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, azure: {accountname: abc, container: abc, chunksize: 8MiB}} =>     chunksize: 8MiB
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {timeout: 1s}} =>     timeout: 1s
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {redirect: always}} =>     redirect: always
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {redirect: busy, redirectabove: 7}} =>     redirectabove: 7
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {redirect: busy, redirectprivate: true}} =>     redirectprivate: true
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {ttl: 30days}} =>     ttl: 720h
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {ttl: 0}} =>     ttl: 0s
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, shared: {maxsize: 10tib}} =>     maxsize: 10TiB
REGISTRY_STORAGE={filesystem: {rootdirectory: a}, s3: {bucket: abc, region: r1}, redirect: {disable: true}} =>     disable: true
REGISTRY_HTTP_ADDR=127.0.0.1:1 =>   addr: 127.0.0.1:1
REGISTRY_HTTP_ADDR=':1' =>   addr: :1
REGISTRY_HTTP_NET=tcp =>   net: tcp
REGISTRY_HTTP_PREFIX=/a/ =>   prefix: /a
REGISTRY_HTTP_HOST=https://a.b =>   host: https://a.b/
REGISTRY_HTTP_RELATIVEURLS=true =>   relativeurls: true
REGISTRY_HTTP_ALIASES=['M:5000'] =>   - m:5000
REGISTRY_HTTP_ALIASES_0=m =>   - m
REGISTRY_HTTP_DRAINTIMEOUT=1m =>   draintimeout: 1m
REGISTRY_HTTP_SHUTDOWNDELAY=5s =>   shutdowndelay: 5s
REGISTRY_HEALTH_STORAGEDRIVER_ENABLED=true =>     enabled: true
REGISTRY_HEALTH_STORAGEDRIVER_THRESHOLD=3 =>     threshold: 3
REGISTRY_HEALTH_STORAGEDRIVER_INTERVAL=0 =>     interval: 10s
REGISTRY_HEALTH_FILE=[{file: /down, threshold: 0}] =>   - file: /down
REGISTRY_HEALTH_FILE_0_FILE=/down =>   - file: /down
REGISTRY_HEALTH_HTTP=[{uri: 'http://a', headers: {X-A: [hunter2]}}] =>       - <hidden>
REGISTRY_HEALTH_HTTP=[{uri: 'http://a', statuscode: 204}] =>     statuscode: 204
REGISTRY_HEALTH_TCP=[{addr: 'a:1', timeout: 3s}] =>     timeout: 3s
REGISTRY_HTTP_TLS={certificate: c, key: k} =>     certificate: c
REGISTRY_HTTP_TLS={certificate: c, key: k, clientcas: [a]} =>     clientauth: require-and-verify-client-cert
REGISTRY_HTTP_TLS={certificate: c, key: k, clientauth: request-client-cert} =>     clientauth: request-client-cert
REGISTRY_HTTP_TLS={certificate: c, key: k, minimumtls: tls1.3} =>     minimumtls: tls1.3
REGISTRY_HTTP_TLS={certificate: c, key: k, ciphersuites: [TLS_AES_128_GCM_SHA256]} =>     - TLS_AES_128_GCM_SHA256
REGISTRY_HTTP_LISTENERS=[{addr: ':1', serves: operators}] =>     serves: operators
REGISTRY_HTTP_LISTENERS_0_ADDR=127.0.0.1:1 =>     addr: 127.0.0.1:1
REGISTRY_HTTP_HEADERS={X-A: [b]} =>     x-a:
REGISTRY_HTTP_HEADERS_X_A=[b] =>     x-a:
REGISTRY_HTTP_HTTP2_DISABLED=true =>     disabled: true
REGISTRY_HTTP_LIMITS_CONNECTIONS=500 =>     connections: 500
REGISTRY_HTTP_LIMITS_PERADDRESS=50 =>     peraddress: 50
REGISTRY_HTTP_DEBUG_ADDR=:5001 =>     addr: :5001
REGISTRY_HTTP_DEBUG={addr: ':5001'} =>     addr: :5001
REGISTRY_HTTP_TRUSTEDPROXIES=[10.0.0.0/8] =>   - 10.0.0.0/8
REGISTRY_HTTP_TRUSTEDPROXIES_0=10.0.0.1 =>   - 10.0.0.1/32
REGISTRY_AUTH_TOKENTTL=10m =>   tokenttl: 10m
REGISTRY_AUTH_GROUPS={a: [b]} =>     a:
REGISTRY_AUTH_NETWORKS=[{networks: [10.0.0.0/8], user: a}] =>     - 10.0.0.0/8
REGISTRY_AUTH_CERTIFICATES=[{subject: a, groups: [g]}] =>   - subject: a
REGISTRY_AUTH_OIDC=[{issuer: 'https://a', audience: b, required: {c: d}}] =>       c: d
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**']}] => - name: ci
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], reuse: false}] =>   reuse: false
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], delete: false}] =>   delete: false
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], readonly: true}] =>   readonly: true
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], incomplete: allow}] =>   incomplete: allow
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], immutable: [v*]}] =>   - v*
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], immutable: [v*], mutable: [v0]}] =>   - v0
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], quota: 1gib}] =>   quota: 1GiB
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], maxblob: 1GiB}] =>   maxblob: 1GiB
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], uploads: {ttl: 1h}}] =>     ttl: 1h
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], uploads: {max: 7}}] =>     max: 7
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], grace: 1h}] =>   grace: 1h
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], untagged: 30days}] =>   untagged: 720h
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], ttl: 1h}] =>   ttl: 1h
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], keep: {newest: 3}}] =>     newest: 3
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], keep: {tags: [m*]}}] =>     - m*
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], evictable: true}] =>   evictable: true
REGISTRY_HOSTED=[{name: ci, repositories: ['ci/**'], sync: blob}] =>   sync: blob
REGISTRY_HOSTED_0_NAME=ci => - name: ci
REGISTRY_REPLICAS={peers: 'A.example:5000', secret: 0123456789abcdef} =>   peers: a.example:5000
REGISTRY_REPLICAS={peers: ['10.0.0.1:5000', 'b:1'], secret: 0123456789abcdef} =>   - b:1
REGISTRY_REPLICAS={peers: ['a:1', 'b:1'], secret: 0123456789abcdef} =>   secret: <hidden>
REGISTRY_REPLICAS={peers: ['a:1', 'b:1'], self: 'B:1', secret: 0123456789abcdef} =>   self: b:1
REGISTRY_REPLICAS={peers: 'a:1', secret: 0123456789abcdef, servername: a.example} =>   servername: a.example
REGISTRY_REPLICAS={peers: ['a:1', 'b:1'], secret: 0123456789abcdef, hostedwriter: 'B:1'} =>   hostedwriter: b:1
REGISTRY_REPLICAS={peers: 'a:1', secret: 0123456789abcdef, hostedwriter: 'a-0.a:1'} =>   hostedwriter: a-0.a:1
REGISTRY_REPLICAS_TIMEOUT=2s =>   timeout: 2s
REGISTRY_PROXY_REMOTEURL=none =>   remoteurl: none
REGISTRY_PROXY_REMOTEURL=https://a:5 =>   remoteurl: https://a:5/
REGISTRY_PROXY_TTL=1h =>   ttl: 1h
REGISTRY_PROXY_TAGS_TTL=5s =>     ttl: 5s
REGISTRY_PROXY_TAGS_STALEWHILEREVALIDATE=30s =>     stalewhilerevalidate: 30s
REGISTRY_PROXY_TAGS_STALEIFERROR=24h =>     staleiferror: 24h
REGISTRY_PROXY_TAGS_RULES=[{tag: v*, immutable: true}] =>       immutable: true
REGISTRY_PROXY_TAGS_RULES=[{semver: true, offline: true}] =>       offline: true
REGISTRY_PROXY_TAGS_RULES=[{repository: a/*, ttl: 1h, stalewhilerevalidate: 5m}] =>       ttl: 1h
REGISTRY_PROXY_TAGS_RULES_0={tag: main, staleiferror: 1h} =>       staleiferror: 1h
REGISTRY_PROXY_KEEPFRESH_IMAGES=['a/b:main'] =>     - a/b:main
REGISTRY_PROXY_KEEPFRESH_IMAGES_0=a/**:v* =>     - a/**:v*
REGISTRY_PROXY_KEEPFRESH_USEDWITHIN=24h =>     usedwithin: 24h
REGISTRY_PROXY_KEEPFRESH_DAILY=1gib =>     daily: 1GiB
REGISTRY_PROXY_KEEPFRESH_PLATFORMS=[linux/arm64] =>     - linux/arm64
REGISTRY_PROXY_KEEPFRESH_PLATFORMS_0=linux/arm/v7 =>     - linux/arm/v7
REGISTRY_PROXY_KEEPFRESH_WINDOWS=['22:00-06:00'] =>     - 22:00-06:00
REGISTRY_PROXY_KEEPFRESH_WINDOWS_0=12:00-13:00 =>     - 12:00-13:00
REGISTRY_PROXY_KEEPFRESH_UTCOFFSET=+02:00 =>     utcoffset: +02:00
REGISTRY_PROXY_NEGATIVETTL=5s =>   negativettl: 5s
REGISTRY_PROXY_TTLMODE=fixed =>   ttlmode: fixed
REGISTRY_PROXY_TTLS=[{repository: a/*, ttl: 24h}] =>   - repository: a/*
REGISTRY_PROXY_PINS=['a/**'] =>   - a/**
REGISTRY_PROXY_PINS_0=a/b:* =>   - a/b:*
REGISTRY_STORAGE_MAXSIZE=80% =>   maxsize: 80%
REGISTRY_STORAGE_MINFREE=5gib =>   minfree: 5GiB
REGISTRY_STORAGE_SCRUB_INTERVAL=30days =>     interval: 720h
REGISTRY_STORAGE_SCRUB={interval: 1h, rate: 1MB} =>     rate: 1MB
REGISTRY_PROXY_CONNECTTIMEOUT=5s =>   connecttimeout: 5s
REGISTRY_PROXY_SEGMENTS_MINSIZE=1gib =>     minsize: 1GiB
REGISTRY_PROXY_SEGMENTS_COUNT=1 =>     count: 1
REGISTRY_PROXY_SEGMENTS_PERBLOB=64 =>     perblob: 64
REGISTRY_PROXY_STREAMS={total: 8} =>     perupstream: 8
REGISTRY_PROXY_STREAMS_PERUPSTREAM=7 =>     perupstream: 7
REGISTRY_PROXY_PREFETCH_DOWNLOADS=0 =>     downloads: 0
REGISTRY_PROXY_PREFETCH_MAXSIZE=1gib =>     maxsize: 1GiB
REGISTRY_PROXY_MAXBLOBSIZE=8GiB =>   maxblobsize: 8GiB
REGISTRY_PROXY_MINSPEED=1000 =>   minspeed: 1KB
REGISTRY_PROXY_ONABANDON=pause =>   onabandon: pause
REGISTRY_PROXY_RANGES=passthrough =>   ranges: passthrough
REGISTRY_PROXY_RANGERULES=[{repository: a/*, ranges: passthrough}] =>     ranges: passthrough
REGISTRY_PROXY_OFFLINE=true =>   offline: true
REGISTRY_PROXY_FILLAFTER=75% =>   fillafter: 75%
REGISTRY_PROXY_INSECURE=true =>   insecure: true
REGISTRY_PROXY_PLAINHTTP=true =>   plainhttp: true
REGISTRY_PROXY_AUTHORIZE=caller =>   authorize: caller
REGISTRY_PROXY_ACCESSTTL=1m =>   accessttl: 1m
REGISTRY_PROXY_ACCESSSTALE=2h =>   accessstale: 2h
REGISTRY_PROXY_ENDPOINTS=[{url: 'https://m', prefix: hub/x}] =>     prefix: hub/x
REGISTRY_PROXY_ENDPOINTS_0_WEIGHT=3 =>   - weight: 3
REGISTRY_PROXY_ENDPOINTS_0_FALLBACKON404=true =>     fallbackon404: true
REGISTRY_PROXY_ENDPOINTS_0_URL=https://m.example:8443 =>     url: https://m.example:8443/
REGISTRY_PROXY_ENDPOINTSELECTION=latency =>   endpointselection: latency
REGISTRY_PROXY_TRUST=internal =>   trust: internal
REGISTRY_PROXY_REALM=https://a.b/t =>   realm: https://a.b/t
REGISTRY_PROXY_REDIRECTS=['*.a.b'] =>   - '*.a.b'
REGISTRY_PROXY_REDIRECTS_0=10.0.0.1 =>   - 10.0.0.1
REGISTRY_PROXY_SCOPE=a:{name}:b =>   scope: a:{name}:b
REGISTRY_PROXY_USERNAMEFILE=Cargo.toml =>   usernamefile: Cargo.toml
REGISTRY_PROXY_PASSWORDFILE=Cargo.toml =>   passwordfile: Cargo.toml
REGISTRY_PROXY_DOCKERCONFIG=Cargo.toml =>   dockerconfig: Cargo.toml
REGISTRY_PROXY_EXEC_COMMAND=docker-credential-x =>     command: docker-credential-x
REGISTRY_PROXY_EXEC={command: x, lifetime: 12h} =>     lifetime: 12h
REGISTRY_PROXY_CREDENTIALSREQUIRED=false =>   credentialsrequired: false
REGISTRY_PROXY_CREDENTIALS=[{repositories: [a/*], exec: {command: x}}] =>       command: x
REGISTRY_PROXY_ACCOUNTS=[{username: u, password: hunter2}] =>   - username: u
REGISTRY_PROXY_RATELIMIT_RESERVE=50 =>     reserve: '50'
REGISTRY_PROXY_RATELIMIT_RESERVE=5% =>     reserve: 5%
REGISTRY_PROXY_RATELIMIT_REQUESTS=7 =>     burst: 7
REGISTRY_PROXY_RATELIMIT_BURST=9 =>     burst: 9
REGISTRY_PROXY_RATELIMIT_BANDWIDTH=50mib =>     bandwidth: 50MiB
REGISTRY_PROXY_RATELIMIT_MONTHLY=10TiB =>     monthly: 10TiB
REGISTRY_PROXY_CERTIFICATE=Cargo.toml =>   certificate: Cargo.toml
REGISTRY_PROXY_KEY=Cargo.toml =>   key: Cargo.toml
REGISTRY_PROXY_MINIMUMTLS=tls1.3 =>   minimumtls: tls1.3
REGISTRY_PROXY_PROXYURL=none =>   proxyurl: none
REGISTRY_PROXY_PROXYURL=http://u:hunter2@p:3128 =>   proxyurl: http://<hidden>@p:3128
REGISTRY_PROXY_ALIASES=[a.b] =>   - a.b
REGISTRY_PROXY_ALIASES_0=a.b =>   - a.b
REGISTRY_proxy_ttl=1h =>   ttl: 1h
";

/// The variable, its value and what is expected of it, of each line of a table.
fn cases(table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    table.trim_start().lines().map(|line| {
        let (variable, expected) = line.split_once(" => ").unwrap();
        let (name, value) = variable.split_once('=').unwrap();
        (name, value, expected)
    })
}

/// Variables that set each key, with those that it needs besides.
pub(super) fn every_key() -> Vec<Vec<(&'static str, &'static str)>> {
    let needed = |(name, value, _)| vec![(name, value), other(name), OPEN];
    cases(VARIABLES).map(needed).collect()
}

/// Some are set only with another one.
fn other(name: &str) -> (&'static str, &'static str) {
    match name.rsplit_once('_').map(|(_, key)| key) {
        Some("USERNAMEFILE") => ("REGISTRY_PROXY_PASSWORD", "p"),
        Some("PASSWORDFILE") => ("REGISTRY_PROXY_USERNAME", "u"),
        Some("ACCOUNTS") => ("REGISTRY_PROXY_DOCKERCONFIG", "Cargo.toml"),
        Some("CERTIFICATE") => ("REGISTRY_PROXY_KEY", "Cargo.toml"),
        Some("KEY") => ("REGISTRY_PROXY_CERTIFICATE", "Cargo.toml"),
        Some("NAME") => ("REGISTRY_HOSTED_0_REPOSITORIES", "['ci/**']"),
        Some("STORAGE") => ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io"),
        Some("REMOTEURL") => ("REGISTRY_HOSTED", "[{name: ci, repositories: ['ci/**']}]"),
        _ => ("REGISTRY_UNUSED", ""),
    }
}

#[test]
fn every_key_has_a_variable() {
    for (name, value, line) in cases(VARIABLES) {
        let Loaded { effective, .. } =
            load(None, environment(&[(name, value), other(name), OPEN])).unwrap();
        assert!(!effective.contains("hunter2"), "{effective}");
        let has_line = effective.lines().any(|found| found == line);
        assert!(has_line, "{name}\n{effective}");
    }
}

#[test]
fn a_named_directory_needs_a_named_upstream() {
    let directory = ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/data");
    for upstream in [
        ("REGISTRY_PROXY_REMOTEURL", "https://a"),
        (
            "REGISTRY_PROXY_UPSTREAMS",
            "[{name: b.c, remoteurl: 'https://b.c'}]",
        ),
    ] {
        let loaded = load(None, environment(&[directory, upstream])).unwrap();
        assert!(loaded.effective.contains("    rootdirectory: /data\n"));
    }
    let error = load(None, environment(&[directory]))
        .unwrap_err()
        .to_string();
    let expected = "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: \
         `storage.filesystem.rootdirectory` names a data directory, but `proxy.remoteurl` isn't set";
    assert!(error.contains(expected), "{error}");
    // The default directory is a mirror's, of Docker Hub.
    assert!(load(None, environment(&[])).is_ok());
}

#[test]
fn variables_override_a_file() {
    let password = "p@ss: #1 {";
    let mut variables = vec![
        ("REGISTRY_PROXY_ANONYMOUS", "true"),
        ("REGISTRY_PROXY_USERNAME", "other"),
        ("REGISTRY_PROXY_PASSWORD", password),
        ("REGISTRY_LOG_FIELDS_SERVICE", "mirror"),
        ("REGISTRY_HTTP_HEADERS", "{}"),
    ];
    let upstreams: Vec<[(String, String); 2]> = (0..12)
        .map(|n| {
            let variable = format!("REGISTRY_PROXY_UPSTREAMS_{n}");
            [
                (format!("{variable}_NAME"), format!("r{n}.example")),
                (format!("{variable}_REMOTEURL"), format!("https://h{n}")),
            ]
        })
        .collect();
    let upstreams = upstreams.iter().flatten();
    variables.extend(upstreams.map(|(name, value)| (name.as_str(), value.as_str())));
    let config = loaded(DISTRIBUTION, &variables).config;
    let credentials = config.proxy.default.credentials.unwrap();
    assert_eq!(login(&credentials), ("other", password));
    assert_eq!(
        config.log.fields.into_iter().collect::<Vec<_>>(),
        [("service".to_owned(), "mirror".to_owned())]
    );
    assert!(config.http.headers.is_empty());
    assert_eq!(config.proxy.upstreams.len(), 12);
    assert_eq!(config.proxy.upstreams[11].url.as_str(), "https://h11/");
}

#[test]
fn rules_may_come_from_the_environment() {
    let variables = [
        ("REGISTRY_PROXY_RANGERULES_0_REPOSITORY", "a/*"),
        ("REGISTRY_PROXY_RANGERULES_0_RANGES", "passthrough"),
        ("REGISTRY_PROXY_TTLS_0_REPOSITORY", "a/*"),
        ("REGISTRY_PROXY_TTLS_0_TTL", "1h"),
        ("REGISTRY_PROXY_UPSTREAMS_0_NAME", "ghcr.io"),
        ("REGISTRY_PROXY_UPSTREAMS_0_REMOTEURL", "https://ghcr.io"),
        ("REGISTRY_PROXY_UPSTREAMS_0_TTL", "2h"),
    ];
    let proxy = load(None, environment(&variables)).unwrap().config.proxy;
    let rules = [download::rule("a/*", RangeMode::Passthrough)];
    assert_eq!(proxy.range_rules, rules);
    let rules = [storage::rule("a/*", 1), storage::rule("ghcr.io/**", 2)];
    assert_eq!(proxy.ttl_rules, rules);
}

/// What a file with an account needs besides.
const OPEN: (&str, &str) = ("REGISTRY_PROXY_ANONYMOUS", "true");

/// A variable with its value, and how the problem with it starts.
const PROBLEMS: &str = r#"
REGISTRY_HTTP_ADDR=x => `http.addr` is "x"; write host:port, or :port for all interfaces
REGISTRY_AUTH_HTPASSWD_PATH=x => `auth.htpasswd.path` is "x"; it can't be read:
REGISTRY_AUTH={ => the value is not valid YAML:
REGISTRY_AUTH_SILLY_REALM=x => `auth.silly` is not supported:
REGISTRY_HTTP_TLS_LETSENCRYPT_EMAIL=a@b.c => `http.tls.letsencrypt` is not supported:
REGISTRY_HTTP_TLS={certificate: c, key: k, minimumtls: x} => `http.tls.minimumtls` is "x"; write tls1.2 or tls1.3
REGISTRY_STORAGE_OSS_BUCKET=x => the storage driver `storage.oss` is not supported
REGISTRY_STORAGE=swift => the storage driver `storage.swift` is not supported
REGISTRY_STORAGE_GCS_BUCKET=x => `storage.gcs.bucket` is "x"; write the bucket's name:
REGISTRY_HTTP_HEADERS={ => the value is not valid YAML:
REGISTRY_HTTP={adr: x} => unknown key `http.adr`; did you mean `http.addr`?
REGISTRY_HTTP={addr: ':1', addr: ':1'} => the key `addr` is repeated; keep one
REGISTRY_PROXY_UPSTREAMS_3_NAME=a.b => `proxy.upstreams[3]` leaves a gap in the list; number the items from 0
"#;

#[test]
fn problems_with_variables_name_them() {
    for (name, value, expected) in cases(PROBLEMS) {
        let found = problems(DISTRIBUTION, &[OPEN, (name, value)]);
        let expected = format!("{name}: {expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{found:?}"
        );
    }
    assert_eq!(
        problems(DISTRIBUTION, &[OPEN, ("REGISTRY_HTTP_TLS_CERTIFICATE", "")]),
        Vec::<String>::new()
    );
}

#[test]
fn unknown_variables_are_warnings() {
    let variables = [
        ("REGISTRY_HTPP_ADDR", ":1"),
        ("REGISTRY_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
        ("REGISTRY_HTTP_ADDR_X", "1"),
        ("REGISTRY_PROXY_TLL", "1h"),
        ("REGISTRY_CONFIGURATION_PATH", ""),
        ("PATH", "/bin"),
    ];
    let Loaded { warnings, .. } = load(None, environment(&variables)).unwrap();
    assert_eq!(
        warnings,
        [
            "REGISTRY_HTPP_ADDR: this environment variable matches no configuration key; did you mean `http` (REGISTRY_HTTP)?",
            "REGISTRY_HTTP_ADDR_X: this environment variable matches no configuration key",
            "REGISTRY_PORT_5000_TCP: this environment variable matches no configuration key",
            "REGISTRY_PROXY_TLL: this environment variable matches no configuration key; did you mean `proxy.ttl` (REGISTRY_PROXY_TTL)?",
        ]
    );
}
