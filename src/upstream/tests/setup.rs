use super::*;
use crate::config::{Authorize, TlsVersion};

const HTTPS: &str = "https://registry.example";

#[tokio::test]
async fn a_ca_file_without_certificates_is_refused() {
    let ca = |pem: &str| set_up(config(HTTPS), Some(pem.as_bytes())).unwrap_err();
    for pem in ["no certificate", ""] {
        assert!(matches!(ca(pem), SetupError::NoCertificate));
    }
    let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
    assert!(matches!(ca(broken), SetupError::Authority(_)));
}

#[tokio::test]
async fn nothing_of_the_credentials_is_shown() {
    let mut config = config(HTTPS);
    config.credentials = Some(credentials("user", "s3cret"));
    let shown = format!("{config:?} {:?}", connect(config.clone()));
    assert!(
        !shown.contains("s3cret") && !shown.contains("dXNlc"),
        "{shown}"
    );
}

/// A server over TLS.
async fn secure(identity: &Identity) -> Server {
    let server = Server::with(Options::default().tls(identity)).await;
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    server
}

#[tokio::test]
async fn a_certificate_is_trusted_only_if_configured() {
    let identity = Identity::new();
    let server = secure(&identity).await;

    let trusting = set_up(config(&server.url()), Some(&identity.pem()));
    get_tag(&trusting.unwrap()).await.unwrap();

    let mut careless = config(&server.url());
    careless.insecure = true;
    get_tag(&connect(careless)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_certificate_is_not_trusted() {
    let _frozen = freeze();
    let server = secure(&Identity::new()).await;
    let other = set_up(config(&server.url()), Some(&Identity::new().pem()));
    let error = passing(get_tag(&other.unwrap())).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unreachable(_)), "{error}");
    assert!(server.lines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_configured_authorities_are_trusted_if_they_are_exclusive() {
    let _frozen = freeze();
    let identity = Identity::new();
    let server = secure(&identity).await;
    for (pem, is_trusted) in [(identity.pem(), true), (Identity::new().pem(), false)] {
        let mut config = config(&server.url());
        config.ca_only = true;
        let result = passing(get_tag(&set_up(config, Some(&pem)).unwrap())).await;
        assert_eq!(result.is_ok(), is_trusted, "{:?}", result.err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_with_an_older_tls_than_the_minimum_is_not_asked() {
    let _frozen = freeze();
    let identity = Identity::new();
    let server = Server::with(Options::default().tls12(&identity)).await;
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    for (minimum, is_asked) in [(TlsVersion::Tls12, true), (TlsVersion::Tls13, false)] {
        let mut config = config(&server.url());
        config.minimum_tls = minimum;
        let result = passing(get_tag(&set_up(config, Some(&identity.pem())).unwrap())).await;
        assert_eq!(result.is_ok(), is_asked, "{:?}", result.err());
    }
    let newer = secure(&identity).await;
    let mut config = config(&newer.url());
    config.minimum_tls = TlsVersion::Tls13;
    let upstream = set_up(config, Some(&identity.pem())).unwrap();
    get_tag(&upstream).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_is_shown_to_a_server_that_demands_one() {
    let _frozen = freeze();
    let (identity, client) = (Identity::new(), Identity::new());
    let server = Server::with(Options::default().tls_for(&identity, &client)).await;
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    for (shown, is_let_in) in [
        (Some(client.pem_with_key()), true),
        (Some(Identity::new().pem_with_key()), false),
        (None, false),
    ] {
        let files = TlsFiles {
            ca: Some(identity.pem()),
            identity: shown,
            endpoints: Vec::new(),
        };
        let upstream = set_up_with(config(&server.url()), &files).unwrap();
        let result = passing(get_tag(&upstream)).await;
        assert_eq!(result.is_ok(), is_let_in, "{:?}", result.err());
    }
}

#[tokio::test]
async fn an_unusable_client_certificate_is_refused() {
    let (one, other) = (Identity::new(), Identity::new());
    let mut mismatch = one.pem();
    let key = other.pem_with_key();
    let pem = String::from_utf8(key).unwrap();
    let key = pem.find("-----BEGIN PRIVATE KEY").unwrap();
    mismatch.extend(pem.as_bytes()[key..].iter());
    for identity in [Vec::new(), b"no PEM".to_vec(), one.pem(), mismatch] {
        let files = TlsFiles {
            ca: None,
            identity: Some(identity),
            endpoints: Vec::new(),
        };
        let error = set_up_with(config(HTTPS), &files).unwrap_err();
        assert!(matches!(error, SetupError::Identity(_)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn changed_files_count_for_the_next_connections_also_of_callers() {
    let _frozen = freeze();
    let (identity, client) = (Identity::new(), Identity::new());
    let server = Server::with(Options::default().tls_for(&identity, &client)).await;
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    let files = |shown: &Identity| TlsFiles {
        ca: Some(identity.pem()),
        identity: Some(shown.pem_with_key()),
        ..TlsFiles::default()
    };
    let mut config = config(&server.url());
    config.caller.authorize = Authorize::Caller;
    let upstream = Arc::new(set_up_with(config, &files(&Identity::new())).unwrap());
    let login = Login::new("Basic YW5uOmE=".parse().unwrap());
    let of_caller = upstream.with_login(Some(&Arc::new(login)));
    for one in [&upstream, &of_caller] {
        assert!(passing(get_tag(one)).await.is_err());
    }
    let broken = TlsFiles {
        identity: Some(b"no PEM".to_vec()),
        ..files(&client)
    };
    assert!(upstream.tls().renew(&broken).is_err());
    assert!(passing(get_tag(&upstream)).await.is_err());
    upstream.tls().renew(&files(&client)).unwrap();
    for one in [&upstream, &of_caller] {
        passing(get_tag(one)).await.unwrap();
    }
    assert!(upstream.tls().renew(&broken).is_err());
    passing(get_tag(&upstream)).await.unwrap();
}
