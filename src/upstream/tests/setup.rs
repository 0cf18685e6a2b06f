use super::*;

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
