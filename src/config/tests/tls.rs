//! `http.tls` and `http.listeners`.

use std::path::Path;

use super::{Listen, Serves, config, environment, load, loaded_twice};
use crate::config::tls::{CIPHER_SUITES, ClientAuth, TlsVersion};

#[test]
fn tls_has_the_defaults_of_the_reference_registry() {
    let upstream = "proxy: {remoteurl: 'https://a.example'}\n";
    for tls in [
        "",
        "http: {tls: }",
        "http: {tls: {certificate: '', key: ''}}",
    ] {
        assert_eq!(config(&format!("{upstream}{tls}")).http.tls, None, "{tls}");
    }
    let text = "http: {tls: {certificate: c.pem, key: k.pem}}";
    for config in loaded_twice(&format!("{upstream}{text}\n")) {
        let tls = config.http.tls.unwrap();
        assert_eq!(
            (&*tls.certificate, &*tls.key),
            (Path::new("c.pem"), Path::new("k.pem"))
        );
        assert_eq!(
            (tls.client_auth, tls.minimum),
            (ClientAuth::None, TlsVersion::Tls12)
        );
        assert_eq!(tls.cipher_suites, CIPHER_SUITES);
    }
    let text = "http: {tls: {certificate: c, key: k, clientcas: [a, b], minimumtls: tls1.3}}";
    for config in loaded_twice(&format!("{upstream}{text}\n")) {
        let tls = config.http.tls.unwrap();
        assert_eq!(tls.client_cas, [Path::new("a"), Path::new("b")]);
        assert_eq!(tls.client_auth, ClientAuth::RequireAndVerify);
        assert_eq!(tls.cipher_suites, CIPHER_SUITES[..3]);
    }
}

/// As in Go, where the suites of TLS 1.3 can't be configured at all.
#[test]
fn suites_of_one_version_leave_those_of_the_other() {
    let of_12 = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    let all_of_13 = &CIPHER_SUITES[..3];
    for (named, expected) in [
        (of_12.to_owned(), [all_of_13, &[of_12]].concat()),
        (all_of_13[1].to_owned(), vec![all_of_13[1]]),
        (
            format!("{of_12}, {}", all_of_13[2]),
            vec![all_of_13[2], of_12],
        ),
    ] {
        let text = format!(
            "proxy: {{remoteurl: 'https://a.example'}}\n\
             http: {{tls: {{certificate: c, key: k, ciphersuites: [{named}]}}}}\n"
        );
        for config in loaded_twice(&text) {
            assert_eq!(config.http.tls.unwrap().cipher_suites, expected, "{named}");
        }
    }
}

#[test]
fn listeners_are_read_with_their_defaults() {
    let text = "proxy: {remoteurl: 'https://a.example'}\n\
                http: {listeners: [{addr: '127.0.0.1:1'}, {net: unix, addr: /s, serves: operators},\n  \
                {addr: ':2', tls: {certificate: c, key: k}}]}\n";
    for config in loaded_twice(text) {
        let listeners = config.http.listeners;
        assert_eq!(listeners.len(), 3);
        assert_eq!(listeners[0].listen, Listen::Tcp("127.0.0.1:1".to_owned()));
        assert_eq!(
            (listeners[0].serves, &listeners[0].tls),
            (Serves::Registry, &None)
        );
        assert_eq!(listeners[1].listen, Listen::Unix("/s".into()));
        assert_eq!(listeners[1].serves, Serves::Operators);
        assert!(listeners[2].tls.is_some());
    }
}

#[test]
fn tls_may_come_from_the_environment() {
    let variables = [
        ("REGISTRY_HTTP_TLS_CERTIFICATE", "c"),
        ("REGISTRY_HTTP_TLS_KEY", "k"),
        ("REGISTRY_HTTP_TLS_CLIENTCAS_0", "a"),
        ("REGISTRY_HTTP_LISTENERS_0_ADDR", ":1"),
        ("REGISTRY_HTTP_LISTENERS_0_TLS_CERTIFICATE", "d"),
        ("REGISTRY_HTTP_LISTENERS_0_TLS_KEY", "l"),
    ];
    let http = load(None, environment(&variables)).unwrap().config.http;
    let tls = http.tls.unwrap();
    assert_eq!(
        (&*tls.key, &*tls.client_cas[0]),
        (Path::new("k"), Path::new("a"))
    );
    assert_eq!(http.listeners[0].tls.as_ref().unwrap().key, Path::new("l"));
}
