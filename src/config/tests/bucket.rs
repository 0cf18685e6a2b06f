//! The bucket behind the data directory.

use std::path::PathBuf;
use std::time::Duration;

use super::{
    Azure, AzureCredentials, Bucket, BucketStore, DISTRIBUTION, Gcs, GcsKey, Loaded, RedirectMode,
    S3, S3Encryption, S3Keys, Secret, SharedStorage, Storage, loaded, problems,
};

const LOCAL: &str = "filesystem: {rootdirectory: a}";
const MIB: u64 = 1 << 20;

/// The file with these keys in the section `storage`, beside the data directory.
fn file(storage: &str) -> String {
    format!("version: 0.1\nstorage: {{{LOCAL}, {storage}}}\nproxy: {{remoteurl: 'https://a'}}\n")
}

fn bucket(storage: &str) -> Bucket {
    loaded(&file(storage), &[]).config.bucket.unwrap()
}

/// What is read of the keys in the section `storage`, and again of what is printed of that. Secrets are
/// another text then.
fn twice(storage: &str) -> [Bucket; 2] {
    let first = loaded(&file(storage), &[]);
    let second = loaded(&first.effective, &[]);
    assert_eq!(second.effective, first.effective);
    [first, second].map(|loaded| loaded.config.bucket.unwrap())
}

fn s3(keys: &str) -> S3 {
    match bucket(&format!("s3: {{{keys}}}")).store {
        BucketStore::S3(s3) => s3,
        other => panic!("{other:?}"),
    }
}

fn gcs(keys: &str) -> Gcs {
    match bucket(&format!("gcs: {{bucket: abc, {keys}}}")).store {
        BucketStore::Gcs(gcs) => gcs,
        other => panic!("{other:?}"),
    }
}

fn azure(keys: &str) -> Azure {
    match bucket(&format!(
        "azure: {{accountname: abc, container: img, {keys}}}"
    ))
    .store
    {
        BucketStore::Azure(azure) => azure,
        other => panic!("{other:?}"),
    }
}

fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

#[test]
fn defaults() {
    assert_eq!(loaded("version: 0.1\n", &[]).config.bucket, None);
    let store = S3 {
        bucket: "images".to_owned(),
        region: "eu-west-1".to_owned(),
        endpoint: None,
        force_path_style: false,
        keys: None,
        skip_verify: false,
        encryption: None,
        storage_class: None,
        root: String::new(),
        chunk_size: 16 * MIB,
    };
    let shared = SharedStorage {
        timeout: Duration::from_secs(2),
        redirect: RedirectMode::Never,
        redirect_above: 500,
        redirect_private: false,
        ttl: Some(Duration::from_hours(720)),
        max_size: None,
    };
    let expected = Bucket {
        store: BucketStore::S3(store),
        shared,
    };
    for bucket in twice("s3: {bucket: images, region: eu-west-1}") {
        assert_eq!(bucket, expected);
    }
}

#[test]
fn keys_of_s3_are_honoured() {
    let keys = "bucket: My_Images, region: r1, regionendpoint: 'https://minio.example:9000/', \
                rootdirectory: /a/b/, accesskey: AKIA, secretkey: hun/ter+2, sessiontoken: t, \
                skipverify: true, encrypt: true, keyid: k, storageclass: onezone_ia, chunksize: 5MiB";
    let expected = S3 {
        bucket: "My_Images".to_owned(),
        region: "r1".to_owned(),
        endpoint: Some("https://minio.example:9000".parse().unwrap()),
        force_path_style: true,
        keys: Some(S3Keys {
            access: "AKIA".to_owned(),
            secret: secret("hun/ter+2"),
            token: Some(secret("t")),
        }),
        skip_verify: true,
        encryption: Some(S3Encryption::Kms("k".to_owned())),
        storage_class: Some("ONEZONE_IA".to_owned()),
        root: "a/b".to_owned(),
        chunk_size: 5 * MIB,
    };
    assert_eq!(s3(keys), expected);
    let encrypted = s3("bucket: abc, region: r1, encrypt: true").encryption;
    assert_eq!(encrypted, Some(S3Encryption::Store));
    for class in ["STANDARD", "none"] {
        let s3 = s3(&format!("bucket: abc, region: r1, storageclass: {class}"));
        assert_eq!(s3.storage_class, None);
    }
    // Its other name.
    let other = bucket("s3aws: {bucket: abc, region: r1}").store;
    assert_eq!(other, BucketStore::S3(s3("bucket: abc, region: r1")));
}

#[test]
fn objects_are_below_a_url() {
    for (keys, url) in [
        (
            "region: eu-west-1",
            "https://abc.s3.eu-west-1.amazonaws.com",
        ),
        (
            "region: cn-north-1",
            "https://abc.s3.cn-north-1.amazonaws.com.cn",
        ),
        (
            "region: r1, forcepathstyle: true",
            "https://s3.r1.amazonaws.com/abc",
        ),
        ("regionendpoint: 'minio:9000'", "https://minio:9000/abc"),
        (
            "regionendpoint: 'minio:9000', secure: false",
            "http://minio:9000/abc",
        ),
        (
            "regionendpoint: 'http://10.0.0.1:9000/s3/'",
            "http://10.0.0.1:9000/s3/abc",
        ),
        (
            "regionendpoint: 'http://[::1]:9000'",
            "http://[::1]:9000/abc",
        ),
        (
            "regionendpoint: 'https://s3-accelerate.amazonaws.com', forcepathstyle: false",
            "https://abc.s3-accelerate.amazonaws.com",
        ),
    ] {
        let s3 = s3(&format!("bucket: abc, {keys}"));
        assert_eq!(s3.url(), url);
        assert_eq!(s3.is_secure(), url.starts_with("https:"), "{url}");
    }
    // No certificate is for the host abc.de.s3.r1.amazonaws.com.
    let dotted = s3("bucket: abc.de, region: r1, forcepathstyle: false");
    assert_eq!(dotted.url(), "https://s3.r1.amazonaws.com/abc.de");
}

#[test]
fn the_region_may_come_from_the_environment() {
    let region = |keys: &str, variables: &[(&str, &str)]| {
        let file = file(&format!("s3: {{bucket: abc, {keys}}}"));
        let Loaded {
            config, effective, ..
        } = loaded(&file, variables);
        let Some(BucketStore::S3(s3)) = config.bucket.map(|bucket| bucket.store) else {
            panic!("no S3");
        };
        assert!(effective.contains(&format!("region: {}\n", s3.region)));
        s3.region
    };
    let both = [("AWS_DEFAULT_REGION", "r2"), ("AWS_REGION", "r1")];
    assert_eq!(region("", &both), "r1");
    assert_eq!(region("", &both[..1]), "r2");
    assert_eq!(region("region: r3", &both), "r3");
    let endpoint = "regionendpoint: 'http://minio:9000'";
    assert_eq!(region(endpoint, &both), "r1");
    assert_eq!(region(endpoint, &[("AWS_REGION", "")]), "us-east-1");
    // An unusable one is as good as none.
    let found = problems(&file("s3: {bucket: abc}"), &[("AWS_REGION", "a b")]);
    assert!(
        found.len() == 1 && found[0].contains("`storage.s3.region` is missing"),
        "{found:?}"
    );
}

#[test]
fn keys_of_gcs_are_honoured() {
    assert_eq!(gcs("").key, None);
    let from_file = gcs("keyfile: Cargo.toml, rootdirectory: a, chunksize: 8MiB");
    let expected = Gcs {
        bucket: "abc".to_owned(),
        key: Some(GcsKey::File(PathBuf::from("Cargo.toml"))),
        root: "a".to_owned(),
        chunk_size: 8 * MIB,
    };
    assert_eq!(from_file, expected);
    let written = gcs(
        "credentials: {type: service_account, project_id: p, client_email: e, private_key_id: i, \
         private_key: \"a\\nb\"}",
    );
    let Some(GcsKey::Json(json)) = written.key else {
        panic!("{written:?}");
    };
    let json: serde_json::Value = serde_json::from_str(json.expose()).unwrap();
    let expected = serde_json::json!({
        "client_email": "e", "private_key_id": "i", "private_key": "a\nb",
    });
    assert_eq!(json, expected);
}

#[test]
fn keys_of_azure_are_honoured() {
    let default = Azure {
        account: "abc".to_owned(),
        container: "img".to_owned(),
        endpoint: "https://abc.blob.core.windows.net".parse().unwrap(),
        credentials: None,
        skip_verify: false,
        root: String::new(),
        chunk_size: 16 * MIB,
    };
    assert_eq!(azure(""), default);
    assert_eq!(azure("credentials: {type: default_credentials}"), default);
    let china = azure(
        "realm: core.chinacloudapi.cn, accountkey: hunter2, rootdirectory: a, chunksize: 8MiB, \
         skipverify: true",
    );
    let expected = Azure {
        endpoint: "https://abc.blob.core.chinacloudapi.cn".parse().unwrap(),
        credentials: Some(AzureCredentials::AccountKey(secret("hunter2"))),
        skip_verify: true,
        root: "a".to_owned(),
        chunk_size: 8 * MIB,
        ..default.clone()
    };
    assert_eq!(china, expected);
    let emulator = azure("serviceurl: 'http://10.0.0.1:10000/abc', accountkey: hunter2");
    assert_eq!(emulator.endpoint.as_str(), "http://10.0.0.1:10000/abc");
    let client = AzureCredentials::ClientSecret {
        tenant: "t".to_owned(),
        client: "c".to_owned(),
        secret: secret("hunter2"),
    };
    for kind in ["", "type: client_secret, "] {
        let keys = format!("credentials: {{{kind}tenantid: t, clientid: c, secret: hunter2}}");
        assert_eq!(azure(&keys).credentials.as_ref(), Some(&client));
    }
}

#[test]
fn keys_of_shared_storage_are_honoured() {
    let shared = "timeout: 100ms, redirect: busy, redirectabove: 7, redirectprivate: true, ttl: 0, \
                  maxsize: 10TiB";
    let expected = SharedStorage {
        timeout: Duration::from_millis(100),
        redirect: RedirectMode::Busy,
        redirect_above: 7,
        redirect_private: true,
        ttl: None,
        max_size: Some(10 << 40),
    };
    for bucket in twice(&format!("gcs: {{bucket: abc}}, shared: {{{shared}}}")) {
        assert_eq!(bucket.shared, expected);
    }
    let redirect = |keys: &str| {
        bucket(&format!("gcs: {{bucket: abc}}, {keys}"))
            .shared
            .redirect
    };
    assert_eq!(redirect("shared: {redirect: always}"), RedirectMode::Always);
    assert_eq!(
        redirect("redirect: {disable: false}, shared: {redirect: always}"),
        RedirectMode::Always
    );
    assert_eq!(
        redirect("redirect: {disable: true}, shared: {redirect: always}"),
        RedirectMode::Never
    );
}

#[test]
fn secrets_are_not_shown() {
    for keys in [
        "s3: {bucket: abc, region: r1, accesskey: a, secretkey: hunter2, sessiontoken: hunter2}",
        "gcs: {bucket: abc, credentials: {client_email: e, private_key: hunter2, private_key_id: i}}",
        "azure: {accountname: abc, container: abc, accountkey: hunter2}",
        "azure: {accountname: abc, container: abc, credentials: {tenantid: t, clientid: c, secret: hunter2}}",
    ] {
        let Loaded {
            config, effective, ..
        } = loaded(&file(keys), &[]);
        let debug = format!("{config:?}");
        assert!(!effective.contains("hunter2"), "{effective}");
        assert!(!debug.contains("hunter2"), "{debug}");
        assert!(effective.contains("<hidden>"), "{effective}");
        // It can be read again, so that it can be edited.
        let again = loaded(&effective, &[]);
        assert_eq!(again.effective, effective);
    }
}

/// With an S3 driver as it is often written for the reference registry.
#[test]
fn a_distribution_bucket_reads_unchanged() {
    let s3 = "storage:
  s3:
    accesskey: AKIAEXAMPLE
    secretkey: hunter2
    region: us-east-1
    regionendpoint: http://minio.internal:9000
    forcepathstyle: true
    bucket: registry
    encrypt: false
    keyid:
    secure: false
    v4auth: true
    chunksize: 5242880
    rootdirectory: /
    storageclass: STANDARD
    objectacl: private
    accelerate: false
    usedualstack: false
  redirect:
    disable: false
";
    let text = DISTRIBUTION.replace("storage:\n", s3);
    let Loaded {
        config, warnings, ..
    } = loaded(&text, &[("REGISTRY_PROXY_ANONYMOUS", "true")]);
    assert!(!warnings.join("\n").contains("s3"), "{warnings:?}");
    let bucket = config.bucket.unwrap();
    let BucketStore::S3(s3) = &bucket.store else {
        panic!("{bucket:?}");
    };
    assert_eq!(s3.url(), "http://minio.internal:9000/registry");
    assert_eq!((s3.chunk_size, s3.root.as_str()), (5 * MIB, ""));
    assert!(matches!(config.storage, Storage::Filesystem { .. }));
}

#[test]
fn all_problems_with_a_bucket_are_reported_at_once() {
    let text = "version: 0.1
storage:
  s3:
    bucket: No
    accesskey: a
    secure: false
    chunksize: 1MiB
    v4auth: no
  shared:
    timeout: 0
    maxsize: 5%
";
    let found = problems(text, &[]);
    let places: Vec<_> = found
        .iter()
        .map(|text| text.split(": ").next().unwrap())
        .collect();
    let expected = [3, 3, 4, 5, 6, 7, 8, 10, 11].map(|line| format!("config.yml:{line}"));
    assert_eq!(places, expected, "{found:#?}");
}
