use super::*;

fn refused(settings: UpstreamSettings) -> SetupError {
    match Upstream::new(settings, Clock::system(), Arc::default()) {
        Err(UpstreamError::Setup { name, reason }) => {
            assert_eq!(&*name, "test");
            reason
        }
        other => panic!("{other:?}"),
    }
}

fn at(url: &str) -> UpstreamSettings {
    settings(url)
}

#[tokio::test]
async fn impossible_settings_are_refused_at_once() {
    assert!(matches!(
        refused(at("ftp://registry.example")),
        SetupError::Url
    ));
    assert!(matches!(refused(at("unix:/socket")), SetupError::Url));
    assert!(matches!(
        refused(at("https://u:p@registry.example")),
        SetupError::UserInfo
    ));
    assert!(!format!("{:?}", at("https://u:s3cret@registry.example")).contains("s3cret"));
    let mut colon = at("https://registry.example");
    colon.credentials = Some(Credentials {
        username: "a:b".into(),
        password: "c".into(),
    });
    assert!(matches!(refused(colon), SetupError::Credentials));
    for pem in [&b"no certificate"[..], b""] {
        let mut settings = at("https://registry.example");
        settings.ca_pem = Some(pem.to_vec());
        assert!(matches!(refused(settings), SetupError::NoCertificate));
    }
    let mut broken = at("https://registry.example");
    broken.ca_pem = Some(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n".to_vec());
    assert!(matches!(refused(broken), SetupError::Authority(_)));
}

#[tokio::test]
async fn credentials_over_plain_http_need_a_permit() {
    let with = |url, plain_http| {
        let mut settings = at(url);
        settings.credentials = Some(Credentials {
            username: "user".into(),
            password: "pass".into(),
        });
        settings.plain_http = plain_http;
        // It doesn't stand for the other permit.
        settings.insecure = true;
        settings
    };
    assert!(matches!(
        refused(with("http://registry.example", false)),
        SetupError::PlainHttp
    ));
    for (url, plain_http) in [
        ("http://registry.example", true),
        ("http://127.0.0.2:5000", false),
        ("http://localhost:5000", false),
        ("https://registry.example", false),
    ] {
        connect(with(url, plain_http));
    }
}

#[tokio::test]
async fn nothing_of_the_credentials_is_shown() {
    let mut settings = at("https://registry.example");
    settings.credentials = Some(Credentials {
        username: "user".into(),
        password: "s3cret".into(),
    });
    let shown = format!("{settings:?} {:?}", connect(settings.clone()));
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
async fn a_certificate_is_trusted_if_configured_and_only_then() {
    let identity = Identity::new();
    let server = secure(&identity).await;

    let mut named = settings(&server.url());
    named.ca_pem = Some(identity.pem());
    get_tag(&connect(named)).await.unwrap();

    let mut careless = settings(&server.url());
    careless.insecure = true;
    get_tag(&connect(careless)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_certificate_is_not_trusted() {
    let _frozen = freeze();
    let server = secure(&Identity::new()).await;
    let mut settings = settings(&server.url());
    settings.ca_pem = Some(Identity::new().pem());
    let error = passing(get_tag(&connect(settings))).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Unreachable { .. }),
        "{error}"
    );
    assert!(server.lines().is_empty());
}
