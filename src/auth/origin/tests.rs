use http::header::{HeaderName, HeaderValue};

use super::*;

fn headers(lines: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

/// The address and the origin.
fn seen(peer: &str, lines: &[&str]) -> String {
    let origins = Origins {
        configured: None,
        trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
    };
    let headers = headers(lines);
    let presented = Presented {
        headers: &headers,
        address: peer.parse().ok(),
        certificate: None,
        secure: false,
        authority: None,
    };
    match origins.address(&presented) {
        Ok(address) => {
            let origin = origins.origin(&presented).unwrap_or_else(|| "-".to_owned());
            let address = address.map_or_else(|| "-".to_owned(), |found| found.to_string());
            format!("{address} {origin}")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row for each case")]
fn proxies_are_believed_only_if_trusted() {
    const P: &str = "10.0.0.1";
    for (peer, lines, expected) in [
        (
            "192.0.2.1",
            &["Host: m:5000"][..],
            "192.0.2.1 http://m:5000",
        ),
        // A client that isn't a proxy makes it up.
        (
            "192.0.2.1",
            &["Host: m", "Forwarded: for=10.1.1.1;proto=https;host=evil"],
            "192.0.2.1 http://m",
        ),
        (
            "192.0.2.1",
            &[
                "Host: m",
                "X-Forwarded-For: 10.1.1.1",
                "X-Forwarded-Host: evil",
            ],
            "192.0.2.1 http://m",
        ),
        (P, &["Host: m"], "10.0.0.1 http://m"),
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=192.0.2.7;proto=https;host=mirror.example",
            ],
            "192.0.2.7 https://mirror.example",
        ),
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=\"[2001:db8::1]:47011\";proto=HTTPS",
            ],
            "2001:db8::1 https://m",
        ),
        // The first entry is the client's own invention.
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=10.9.9.9;host=evil, for=192.0.2.7;host=a, for=10.0.0.2",
            ],
            "192.0.2.7 http://a",
        ),
        (
            P,
            &[
                "Host: m",
                "X-Forwarded-For: 10.9.9.9, 192.0.2.7",
                "X-Forwarded-For: 10.0.0.2",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: mirror.example:8443",
            ],
            "192.0.2.7 https://mirror.example:8443",
        ),
        (P, &["Host: m", "Forwarded: for=unknown"], "- http://m"),
        (P, &["Host: m", "Forwarded: for=\"_a:_b\""], "- http://m"),
        (P, &["Host: m", "Forwarded: proto=https"], "- https://m"),
        (P, &["Host: m", "X-Forwarded-For: unknown"], "- http://m"),
        (P, &["Host: m", "X-Forwarded-For: "], "- http://m"),
        (P, &["Host: m", "X-Forwarded-Proto: https"], "- https://m"),
        (
            P,
            &["Host: m", "Forwarded: for=\"192.0.2.7:_b\""],
            "192.0.2.7 http://m",
        ),
        // Quotes mean nothing here, so that they hide nothing.
        (
            P,
            &["Host: m", "X-Forwarded-For: \", 192.0.2.7"],
            "192.0.2.7 http://m",
        ),
        (P, &["Host: m", "X-Forwarded-For: \""], MALFORMED),
        (
            P,
            &["Host: m", "Forwarded: for=\"x, for=192.0.2.7"],
            MALFORMED,
        ),
        (
            P,
            &["Host: m", "Forwarded: for=\"x\\\", for=192.0.2.7"],
            MALFORMED,
        ),
        (P, &["Host: m", "Forwarded: for=x"], MALFORMED),
        (
            P,
            &["Host: m", "Forwarded: for=_secret, for=10.0.0.2"],
            "- http://m",
        ),
        (P, &["Host: m", "X-Forwarded-For: x"], MALFORMED),
        (P, &["Host: m", "X-Forwarded-For: x, 10.0.0.2"], MALFORMED),
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=192.0.2.7",
                "X-Forwarded-For: 192.0.2.7",
            ],
            "192.0.2.7 http://m",
        ),
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=10.1.1.1",
                "X-Forwarded-For: 192.0.2.7",
            ],
            CONTRADICTION,
        ),
        // The client made Forwarded up, and the proxy knows only the others.
        (
            P,
            &[
                "Host: m",
                "Forwarded: for=10.1.1.1",
                "X-Forwarded-Proto: https",
            ],
            CONTRADICTION,
        ),
        (
            P,
            &["Host: m", "Forwarded: for=unknown", "X-Forwarded-Host: m"],
            CONTRADICTION,
        ),
        (P, &["Host: m", "Forwarded: for"], MALFORMED),
        (
            P,
            &["Host: m", "Forwarded: for=192.0.2.7;proto=ftp"],
            MALFORMED,
        ),
        (
            P,
            &["Host: m", "Forwarded: for=192.0.2.7;host=\"a b\""],
            MALFORMED,
        ),
        (P, &["Host: m", "X-Forwarded-Host: a\",x=\"b"], MALFORMED),
        (P, &["Host: m", "X-Forwarded-Host: user@evil"], MALFORMED),
        ("192.0.2.1", &["Host: a\"b"], "192.0.2.1 -"),
    ] {
        assert_eq!(seen(peer, lines), expected, "{peer} {lines:?}");
    }
    let many = format!("X-Forwarded-For: {}", vec!["192.0.2.7"; 33].join(","));
    assert_eq!(seen(P, &[&many]), MALFORMED);
}
