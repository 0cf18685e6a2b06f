use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use testkit::{Authority, Signed};
use tokio_rustls::rustls::crypto::aws_lc_rs;

use super::server::{name_in_go, signs_slowly};
use super::*;
use crate::clock::Clock;
use crate::config::{CIPHER_SUITES, ClientAuth, Tls, TlsVersion};
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;

/// 2027-01-15T08:00:00Z
const NOW: Duration = Duration::from_hours(500_000);

/// A directory with the files of a listener.
struct Site {
    files: tempfile::TempDir,
    authority: Authority,
    metrics: Arc<Metrics>,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            files: tempfile::tempdir().unwrap(),
            authority: Authority::new("servers"),
            metrics: Arc::default(),
        };
        site.install(&site.authority.server());
        site.write("ca.pem", Authority::new("clients").pem());
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn install(&self, signed: &Signed) {
        self.write("cert.pem", &signed.certificate);
        self.write("key.pem", &signed.key);
    }

    fn settings(&self) -> Tls {
        Tls {
            certificate: self.path("cert.pem"),
            key: self.path("key.pem"),
            client_cas: vec![self.path("ca.pem")],
            client_auth: ClientAuth::RequireAndVerify,
            minimum: TlsVersion::Tls12,
            cipher_suites: CIPHER_SUITES.to_vec(),
        }
    }

    fn load(&self) -> Result<ServerTls, TlsError> {
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH + NOW);
        let metrics = Arc::clone(&self.metrics);
        ServerTls::load(self.settings(), ":5000".to_owned(), true, clock, metrics)
    }

    /// Seconds since the epoch at which the certificate in use expires, as the metric has it.
    fn expiry(&self) -> u64 {
        let text = self.metrics.render();
        let series = r#"millpond_tls_certificate_expiry_timestamp_seconds{listener=":5000"} "#;
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap().parse().unwrap()
    }
}

fn is_refused(tls: &ServerTls) -> bool {
    let before = tls.current();
    let refused = matches!(tls.check(), Checked::Refused(_));
    refused && Arc::ptr_eq(&before, &tls.current())
}

fn is_replaced(tls: &ServerTls) -> bool {
    let before = tls.current();
    matches!(tls.check(), Checked::Replaced) && !Arc::ptr_eq(&before, &tls.current())
}

fn is_unchanged(tls: &ServerTls) -> bool {
    let before = tls.current();
    matches!(tls.check(), Checked::Unchanged) && Arc::ptr_eq(&before, &tls.current())
}

#[tokio::test]
async fn every_file_that_cant_be_used_is_named_with_the_reason() {
    let other = Authority::new("others").server();
    let invalid = "-----BEGIN CERTIFICATE-----\nTk8=\n-----END CERTIFICATE-----\n";
    let encrypted = other.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let not_base64 = "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n";
    let not_a_key = "-----BEGIN PRIVATE KEY-----\nTk8=\n-----END PRIVATE KEY-----\n";
    let large = " ".repeat(1024 * 1024 + 1);
    for (file, text, reason) in [
        ("cert.pem", Some("no PEM"), "has no certificate"),
        ("cert.pem", Some(invalid), "is malformed"),
        ("cert.pem", Some(&*other.key), "has no certificate"),
        ("cert.pem", Some(&*large), "has more than 1048576 bytes"),
        ("cert.pem", None, "can't be read: No such file"),
        (
            "key.pem",
            Some(&*other.key),
            "doesn't belong to the certificate in",
        ),
        ("key.pem", Some(&*other.certificate), "has no private key"),
        ("key.pem", Some(&*encrypted), "without a passphrase"),
        ("key.pem", Some(not_base64), "is not valid PEM"),
        ("key.pem", Some(not_a_key), "can't be used"),
        ("key.pem", None, "can't be read: No such file"),
        ("ca.pem", Some(""), "has no certificate"),
        ("ca.pem", Some(invalid), "can't be an authority's"),
        ("ca.pem", None, "can't be read: No such file"),
    ] {
        let site = Site::new();
        match text {
            Some(text) => site.write(file, text),
            None => fs::remove_file(site.path(file)).unwrap(),
        }
        let error = on_one_line(&site.load().unwrap_err());
        let path = site.path(file).display().to_string();
        assert!(
            error.contains(&path) && error.contains(reason),
            "{file}: {error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
    assert!(Site::new().load().is_ok());
}

#[tokio::test]
async fn a_changed_pair_is_used_once_it_is_complete() {
    let site = Site::new();
    let tls = site.load().unwrap();
    assert!(is_unchanged(&tls));
    let first = site.expiry();
    let renewed = site.authority.server_until((2027, 4, 1));
    site.write("cert.pem", &renewed.certificate);
    assert!(is_refused(&tls), "the key doesn't match yet");
    assert!(is_unchanged(&tls), "a refusal is logged once");
    assert_eq!(site.expiry(), first);
    site.write("key.pem", &renewed.key);
    assert!(is_replaced(&tls));
    assert!(is_unchanged(&tls));
    // 2027-04-01T00:00:00Z
    assert_eq!(site.expiry(), 1_806_537_600);

    fs::remove_file(site.path("key.pem")).unwrap();
    assert!(is_refused(&tls));
    assert!(is_unchanged(&tls));
    site.install(&site.authority.server_until((2027, 1, 1)));
    assert!(
        is_refused(&tls),
        "it has expired, and the one in use hasn't"
    );
    site.install(&renewed);
    assert!(is_replaced(&tls));
}

/// Kubernetes mounts a secret as links to `..data/NAME`, and `..data` as a link that it exchanges.
#[tokio::test]
async fn a_secret_whose_link_is_exchanged_is_found() {
    let site = Site::new();
    for (directory, signed) in [
        ("one", site.authority.server()),
        ("two", site.authority.server()),
    ] {
        fs::create_dir(site.path(directory)).unwrap();
        site.write(&format!("{directory}/cert.pem"), &signed.certificate);
        site.write(&format!("{directory}/key.pem"), &signed.key);
    }
    std::os::unix::fs::symlink("one", site.path("..data")).unwrap();
    for name in ["cert.pem", "key.pem"] {
        fs::remove_file(site.path(name)).unwrap();
        std::os::unix::fs::symlink(format!("..data/{name}"), site.path(name)).unwrap();
    }
    let tls = site.load().unwrap();
    std::os::unix::fs::symlink("two", site.path("..data_tmp")).unwrap();
    fs::rename(site.path("..data_tmp"), site.path("..data")).unwrap();
    assert!(is_replaced(&tls));
    assert!(is_unchanged(&tls));
}

#[tokio::test(start_paused = true)]
async fn the_files_are_read_every_ten_seconds() {
    let site = Site::new();
    let tls = Arc::new(site.load().unwrap());
    let (tasks, stop) = (
        crate::tasks::Tasks::new(),
        tokio_util::sync::CancellationToken::new(),
    );
    tls.watch(&tasks, stop.clone());
    let before = tls.current();
    site.install(&site.authority.server());
    let _still = testkit::time::freeze();
    testkit::time::advance(INTERVAL.mul_f64(0.9)).await;
    testkit::time::settle().await;
    assert!(Arc::ptr_eq(&before, &tls.current()));
    testkit::time::advance(INTERVAL.mul_f64(0.1)).await;
    testkit::time::eventually("the new certificate", || {
        !Arc::ptr_eq(&before, &tls.current())
    })
    .await;
    stop.cancel();
    tasks.tracker().close();
    tasks.tracker().wait().await;
}

#[test]
fn the_configured_names_are_those_of_all_suites() {
    let suites = aws_lc_rs::ALL_CIPHER_SUITES.iter();
    let mut implemented: Vec<_> = suites.map(|suite| name_in_go(*suite)).collect();
    let mut configured = CIPHER_SUITES.to_vec();
    implemented.sort();
    configured.sort_unstable();
    assert_eq!(implemented, configured);
}

#[test]
fn only_large_rsa_keys_sign_slowly() {
    use ::aws_lc_rs::encoding::AsDer as _;
    use ::aws_lc_rs::rsa::{KeyPair, KeySize};
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    let slow = |der: PrivateKeyDer<'_>| {
        let key = aws_lc_rs::sign::any_supported_type(&der).unwrap();
        signs_slowly(&*key)
    };
    for (size, is_slow) in [
        (KeySize::Rsa2048, false),
        (KeySize::Rsa3072, false),
        (KeySize::Rsa4096, true),
    ] {
        let pair = KeyPair::generate(size).unwrap();
        let der = pair.as_der().unwrap();
        let der = PrivateKeyDer::Pkcs8(der.as_ref().to_vec().into());
        assert_eq!(slow(der), is_slow, "{size:?}");
    }
    let elliptic = Authority::new("tests").server().key;
    assert!(!slow(
        PrivateKeyDer::from_pem_slice(elliptic.as_bytes()).unwrap()
    ));
}
