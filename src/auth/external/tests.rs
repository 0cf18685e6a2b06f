//! Tokens of an external service: good ones, and every bad kind.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;

/// A key that signs tokens (ES256).
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        Self(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "k1", "alg": "ES256", "use": "sig"})
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self
            .0
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn claims() -> Value {
    json!({
        "iss": "issuer", "sub": "alice", "aud": ["other", "mirror"], "exp": NOW + 300, "nbf": NOW - 10,
        "access": [{"type": "repository", "name": "library/debian", "actions": ["pull"]}],
    })
}

fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

/// The verifier of a service whose keys are in a file.
fn external(signer: &Signer) -> External {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let secret = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "shared"});
    std::fs::write(&path, json!({"keys": [signer.jwk(), secret]}).to_string()).unwrap();
    External::open(&TokenService {
        realm: "https://auth.example/token".to_owned(),
        service: "mirror".to_owned(),
        issuer: "issuer".to_owned(),
        root_cert_bundle: None,
        jwks: Some(path),
        algorithms: ["RS256", "ES256"].map(str::to_owned).to_vec(),
    })
    .unwrap()
}

#[test]
fn a_good_token_names_a_user_and_what_it_may_do() {
    let signer = Signer::new();
    let external = external(&signer);
    let (kid, jwk) = (json!({"alg": "ES256", "kid": "k1"}), signer.jwk());
    for header in [kid, json!({"alg": "ES256", "jwk": jwk})] {
        let verified = external
            .verify(&signer.token(&header, &claims()), NOW)
            .unwrap();
        assert_eq!(
            (verified.subject.as_str(), verified.expires),
            ("alice", NOW + 360)
        );
        let caller = crate::auth::Caller {
            granted: Some(Arc::new(verified.grants)),
            ..crate::auth::Caller::anonymous(None)
        };
        assert!(caller.grants("library/debian", "pull"));
        assert!(!caller.grants("library/debian", "push"));
        assert!(!caller.grants("library/debian2", "pull"));
        assert!(!caller.grants_catalog());
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row for each kind")]
fn every_bad_token_is_refused() {
    let (signer, other) = (Signer::new(), Signer::new());
    let external = external(&signer);
    let header = || json!({"alg": "ES256", "kid": "k1"});
    let good = signer.token(&header(), &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    // Signed with the public key as if it were a secret.
    let secret = serde_json::to_vec(&signer.jwk()).unwrap();
    let hmac = |alg: &str, kid: &str, secret: &[u8]| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let header = encode(json!({"alg": alg, "kid": kid}));
        let content = format!("{header}.{}", parts[1]);
        let tag = aws_lc_rs::hmac::sign(&key, content.as_bytes());
        format!("{content}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let unsigned = encode(json!({"alg": "none"}));
    let claim = |name: &str, value: Value| signer.token(&header(), &with(claims(), name, value));
    let lacks = |name: &str| signer.token(&header(), &without(claims(), name));
    let named = |header: Value| signer.token(&header, &claims());
    for (what, token, error) in [
        ("no token", "a.b.c".to_owned(), JwtError::Malformed),
        (
            "two parts",
            format!("{}.{}", parts[0], parts[1]),
            JwtError::Malformed,
        ),
        ("four parts", format!("{good}.x"), JwtError::Malformed),
        (
            "too long",
            format!("{good}{}", "A".repeat(16 * 1024)),
            JwtError::Malformed,
        ),
        (
            "none",
            format!("{unsigned}.{}.", parts[1]),
            JwtError::Algorithm,
        ),
        (
            "none with a signature",
            format!("{unsigned}.{}.{}", parts[1], parts[2]),
            JwtError::Algorithm,
        ),
        (
            "public key as a secret",
            hmac("HS256", "k1", &secret),
            JwtError::Algorithm,
        ),
        (
            "shared secret",
            hmac("HS256", "shared", b"secret"),
            JwtError::Algorithm,
        ),
        (
            "secret's key ID",
            named(json!({"alg": "ES256", "kid": "shared"})),
            JwtError::Key,
        ),
        (
            "another algorithm",
            hmac("ES384", "k1", &secret),
            JwtError::Algorithm,
        ),
        (
            "another kind of key",
            hmac("RS256", "k1", &secret),
            JwtError::Algorithm,
        ),
        (
            "no signature",
            format!("{}.{}.", parts[0], parts[1]),
            JwtError::Signature,
        ),
        (
            "other claims",
            format!(
                "{}.{}.{}",
                parts[0],
                encode(with(claims(), "sub", json!("root"))),
                parts[2]
            ),
            JwtError::Signature,
        ),
        (
            "another signer",
            other.token(&header(), &claims()),
            JwtError::Signature,
        ),
        (
            "its own key",
            other.token(
                &json!({"alg": "ES256", "jwk": without(other.jwk(), "kid")}),
                &claims(),
            ),
            JwtError::Key,
        ),
        (
            "its own key with our ID",
            other.token(&json!({"alg": "ES256", "jwk": other.jwk()}), &claims()),
            JwtError::Signature,
        ),
        ("no key", named(json!({"alg": "ES256"})), JwtError::Key),
        (
            "unknown key",
            named(json!({"alg": "ES256", "kid": "k2"})),
            JwtError::Key,
        ),
        (
            "extension",
            named(json!({"alg": "ES256", "kid": "k1", "crit": ["x"], "x": 1})),
            JwtError::Malformed,
        ),
        (
            "no certificates",
            named(json!({"alg": "ES256", "x5c": []})),
            JwtError::Malformed,
        ),
        (
            "untrusted certificate",
            named(json!({"alg": "ES256", "x5c": ["MAA="]})),
            JwtError::Chain,
        ),
        (
            "too many certificates",
            named(json!({"alg": "ES256", "x5c": vec!["MAA="; 6]})),
            JwtError::Chain,
        ),
        ("issuer", claim("iss", json!("issuer2")), JwtError::Issuer),
        (
            "audience",
            claim("aud", json!("mirror2")),
            JwtError::Audience,
        ),
        ("no audience", claim("aud", json!([])), JwtError::Audience),
        ("expired", claim("exp", json!(NOW - 60)), JwtError::Expired),
        ("not yet", claim("nbf", json!(NOW + 61)), JwtError::NotYet),
        (
            "expiry as a text",
            claim("exp", json!("2030")),
            JwtError::Claim,
        ),
        ("without expiry", lacks("exp"), JwtError::Claim),
        ("without issuer", lacks("iss"), JwtError::Claim),
        ("without audience", lacks("aud"), JwtError::Claim),
        ("access", claim("access", json!([1])), JwtError::Claim),
    ] {
        assert_eq!(external.verify(&token, NOW), Err(error), "{what}");
    }
    for clock in [NOW - 70, NOW + 359] {
        assert!(external.verify(&good, clock).is_ok(), "clocks may differ");
    }
}

#[test]
fn key_ids_are_those_of_the_standards() {
    // RFC 7638, section 3.1.
    let jwk = json!({
        "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    });
    let expected = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
    assert_eq!(thumbprint(&jwk).unwrap(), expected);
    let id = libtrust_id(b"key");
    assert_eq!(id.len(), 12 * 4 + 11);
    assert!(id.split(':').all(|group| group.len() == 4), "{id}");
}

/// A certificate authority, a certificate that it signed, and the key of that.
struct Chain {
    authority: rcgen::Certificate,
    leaf: rcgen::Certificate,
    signer: Signer,
}

fn chain() -> Chain {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["auth.example".to_owned()]).unwrap();
    let leaf = params.signed_by(&leaf_key, &issuer).unwrap();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, &leaf_key.serialize_der()).unwrap();
    Chain {
        authority,
        leaf,
        signer: Signer(pair),
    }
}

/// The verifier of a service with this file of certificates.
fn with_bundle(pem: &str) -> Result<External, AuthSetupError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.pem");
    std::fs::write(&path, pem).unwrap();
    External::open(&TokenService {
        realm: "https://auth.example/token".to_owned(),
        service: "mirror".to_owned(),
        issuer: "issuer".to_owned(),
        root_cert_bundle: Some(path),
        jwks: None,
        algorithms: vec!["ES256".to_owned()],
    })
}

#[test]
fn a_chain_is_trusted_if_the_bundle_has_its_certificate_or_its_authority() {
    let (ours, other) = (chain(), chain());
    let encoded = |certificate: &rcgen::Certificate| STANDARD.encode(certificate.der());
    let token = |chain: &Chain, x5c: Value| {
        chain
            .signer
            .token(&json!({"alg": "ES256", "x5c": x5c}), &claims())
    };
    let x5c = json!([encoded(&ours.leaf), encoded(&ours.authority)]);
    for pem in [ours.authority.pem(), ours.leaf.pem()] {
        let external = with_bundle(&pem).unwrap();
        let verify = |token: &str| external.verify(token, NOW).map(|verified| verified.subject);
        assert_eq!(verify(&token(&ours, x5c.clone())), Ok("alice".to_owned()));
        assert_eq!(
            verify(&token(&ours, json!([encoded(&ours.leaf)]))),
            Ok("alice".to_owned())
        );
        let foreign = json!([encoded(&other.leaf), encoded(&other.authority)]);
        assert_eq!(verify(&token(&other, foreign)), Err(JwtError::Chain));
        // Ours beside a foreign one, and ours with a foreign signature.
        let mixed = json!([encoded(&other.leaf), encoded(&ours.authority)]);
        assert_eq!(verify(&token(&other, mixed)), Err(JwtError::Chain));
        assert_eq!(
            verify(&token(&other, x5c.clone())),
            Err(JwtError::Signature)
        );
    }
    let external = with_bundle(&ours.leaf.pem()).unwrap();
    let (_, ids) = public_key(ours.leaf.der()).unwrap();
    assert_eq!(ids.len(), 2);
    for kid in ids {
        let token = ours
            .signer
            .token(&json!({"alg": "ES256", "kid": kid}), &claims());
        assert!(external.verify(&token, NOW).is_ok());
    }
    let long_after = 100_000_000_000;
    let far = with(claims(), "exp", json!(long_after + 300));
    let late = ours
        .signer
        .token(&json!({"alg": "ES256", "x5c": x5c}), &far);
    assert_eq!(external.verify(&late, long_after), Err(JwtError::Chain));
    for pem in [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    ] {
        let opened = with_bundle(pem);
        assert!(
            matches!(opened, Err(AuthSetupError::Certificates(_))),
            "{opened:?}"
        );
    }
}
