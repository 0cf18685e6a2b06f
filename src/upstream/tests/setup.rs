use super::*;

fn refused(config: config::Upstream) -> SetupError {
    set_up(config, None).unwrap_err()
}

const HTTPS: &str = "https://registry.example";

#[tokio::test]
async fn impossible_settings_are_refused_at_once() {
    for (url, expected) in [
        ("ftp://registry.example", RedirectError::Scheme),
        ("unix:/socket", RedirectError::Scheme),
        ("https://u:p@registry.example", RedirectError::UserInfo),
    ] {
        let error = refused(config(url));
        assert!(
            matches!(&error, SetupError::Url(error) if *error == expected),
            "{error}"
        );
    }
    let mut colon = config(HTTPS);
    colon.credentials = Some(credentials("a:b", "c"));
    assert!(matches!(refused(colon), SetupError::Credentials));
    let ca = |pem: &str| set_up(config(HTTPS), Some(pem.as_bytes())).unwrap_err();
    for pem in ["no certificate", ""] {
        assert!(matches!(ca(pem), SetupError::NoCertificate));
    }
    let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
    assert!(matches!(ca(broken), SetupError::Authority(_)));
}

#[tokio::test]
async fn credentials_over_plain_http_need_a_permit() {
    let with = |url, plain_http| {
        let mut config = config(url);
        config.credentials = Some(credentials("user", "pass"));
        config.plain_http = plain_http;
        // It doesn't stand for the other permit.
        config.insecure = true;
        config
    };
    let error = refused(with("http://registry.example", false));
    assert!(matches!(error, SetupError::PlainHttp), "{error}");
    for (url, plain_http) in [
        ("http://registry.example", true),
        ("http://127.0.0.2:5000", false),
        ("http://localhost:5000", false),
        (HTTPS, false),
    ] {
        connect(with(url, plain_http));
    }
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
