//! The accounts of upstreams: several at one host, and credentials that rotate.
#![cfg(unix)]

use std::path::Path;

use millpond::app::App;
use tempfile::TempDir;

use crate::harness::{ALWAYS, Image, Registry, Reply, Seen, Setup, mirrored_with};

const BASIC: &str = "Basic realm=\"scripted\"";

/// `user:password` in a request's header.
fn basic(seen: &Seen) -> Option<String> {
    use base64::Engine as _;
    let encoded = seen.header("authorization")?.strip_prefix("Basic ")?;
    let decoded = base64::prelude::BASE64_STANDARD.decode(encoded).unwrap();
    Some(String::from_utf8(decoded).unwrap())
}

/// From now on, the registry wants this user and password for repositories below a namespace.
fn demand(up: &Registry, namespace: &str, account: &str) {
    let account = account.to_owned();
    up.on(&format!("/v2/{namespace}/"), ALWAYS, move |seen, usual| {
        if basic(seen).as_ref() == Some(&account) {
            return usual;
        }
        Reply::error(401).with("WWW-Authenticate", BASIC)
    });
}

#[tokio::test]
async fn one_host_may_have_two_names_and_accounts() {
    let up = Registry::start().await;
    for (team, account) in [("one", "a:first"), ("two", "b:second")] {
        up.push(&format!("{team}/app"), "1", &Image::oci(1));
        demand(&up, team, account);
    }
    let other = Registry::start().await;
    let m = Setup::new(&other)
        .upstream("one.example", &up, ", username: a, password: first")
        .upstream("two.example", &up, ", username: b, password: second")
        .start()
        .await;
    let image = Image::oci(1);
    m.serves("/v2/one.example/one/app/manifests/1", &image.manifest)
        .await;
    m.serves("/v2/two.example/two/app/manifests/1", &image.manifest)
        .await;
    for path in [
        "/v2/one.example/two/app/manifests/1",
        "/v2/two.example/one/app/manifests/1",
    ] {
        m.get(path).await.refused(401, "UNAUTHORIZED");
    }
    // The host means the first one.
    let ns = up.address.to_string().replace(':', "%3A");
    let path = format!("/v2/one/app/manifests/1?ns={ns}");
    m.serves(&path, &image.manifest).await;
}

/// A credential helper: a link to the one of the unit tests, which does what the file beside it says.
struct Helper(TempDir);

impl Helper {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/upstream/tests/credential-helper");
        std::os::unix::fs::symlink(program, dir.path().join("helper")).unwrap();
        let helper = Self(dir);
        helper.becomes(text);
        helper
    }

    fn becomes(&self, text: &str) {
        let path = self.0.path();
        std::fs::write(path.join("new"), text).unwrap();
        std::fs::rename(path.join("new"), path.join("helper.sh")).unwrap();
    }

    fn gives(&self, password: &str) {
        self.becomes(&format!(
            r#"echo '{{"Username":"user","Secret":"{password}"}}'"#
        ));
    }

    fn line(&self) -> String {
        format!(
            "proxy.exec: {{command: {}}}",
            self.0.path().join("helper").display()
        )
    }
}

#[tokio::test]
async fn a_helper_rotates_its_credentials() {
    let helper = Helper::new("");
    helper.gives("one");
    let (up, m) = mirrored_with(&[&helper.line()]).await;
    for (seed, password) in [(1, "one"), (2, "two"), (3, "three")] {
        let (image, tag) = (Image::oci(seed), seed.to_string());
        up.behave();
        demand(&up, "app", &format!("user:{password}"));
        helper.gives(password);
        up.push("app", &tag, &image);
        m.serves(&format!("/v2/app/manifests/{tag}"), &image.manifest)
            .await;
    }
}

#[tokio::test]
async fn a_helper_that_fails_is_a_502_without_details_and_cached_images_are_served() {
    let helper = Helper::new("");
    helper.gives("one");
    let (up, m) = mirrored_with(&[&helper.line(), "proxy.tags: {ttl: 0}"]).await;
    let image = Image::oci(1);
    up.push("app", "1", &image);
    demand(&up, "app", "user:one");
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    // The old password is refused, and there is no new one.
    up.behave();
    demand(&up, "app", "user:two");
    helper.becomes("echo s3cret reason >&2; exit 1");
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let answer = m.get("/v2/app/manifests/2").await;
    answer.refused(502, "UNAVAILABLE");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(
        text.contains("credentials") && !text.contains("s3cret"),
        "{text}"
    );
}

#[tokio::test]
async fn credentials_from_files_are_used() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().display();
    std::fs::write(files.path().join("user"), "user\n").unwrap();
    std::fs::write(files.path().join("password"), "one\n").unwrap();
    let lines = [
        format!("proxy.usernamefile: {path}/user"),
        format!("proxy.passwordfile: {path}/password"),
    ];
    let (up, m) = mirrored_with(&lines.each_ref().map(|line| &**line)).await;
    up.protect(Some(("user", "one")));
    let image = Image::oci(1);
    up.push("app", "1", &image);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
}

#[tokio::test]
async fn a_broken_client_certificate_is_found_before_the_start() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("x.pem").display().to_string();
    std::fs::write(&path, "no certificate").unwrap();
    let text = format!(
        "version: 0.1\nstorage: inmemory\nproxy: {{remoteurl: 'https://a.example', anonymous: true, certificate: {path}, key: {path}}}\n"
    );
    let loaded = millpond::config::parse(&text, "c.yml", std::iter::empty()).unwrap();
    let error = App::check(&loaded.config).await.unwrap_err();
    assert_eq!(
        error.key(&loaded.config).as_deref(),
        Some("proxy.certificate")
    );
}
