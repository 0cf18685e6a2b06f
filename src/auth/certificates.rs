//! Users with client certificates: from the names in a certificate that the handshake has verified to
//! a user.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use super::caller::{Certificate, User};
use crate::config::{CertificateMatch, CertificateUser};

/// The user that owns a certificate: of the first entry that matches.
pub(super) fn user(certificate: &Certificate, entries: &[CertificateUser]) -> Option<User> {
    if entries.is_empty() {
        return None;
    }
    let (_, parsed) = X509Certificate::from_der(&certificate.der).ok()?;
    let mut common_names = parsed.subject().iter_common_name();
    let common_name = common_names.next().and_then(|name| name.as_str().ok());
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .into_iter()
        .flat_map(|names| &names.value.general_names);
    let alternative: Vec<&str> = alternative
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some(*name)
            }
            _ => None,
        })
        .collect();
    entries.iter().find_map(|entry| {
        let matched = match &entry.matches {
            CertificateMatch::Subject(pattern) => match pattern.split_once('=') {
                Some((kind, pattern)) => attribute(parsed.subject(), kind, pattern),
                None => common_name.filter(|name| matches(pattern, name)),
            },
            CertificateMatch::AlternativeName(pattern) => alternative
                .iter()
                .copied()
                .find(|name| matches(pattern, name)),
        }?;
        Some(User {
            name: entry.user.clone().unwrap_or_else(|| matched.to_owned()),
            groups: entry.groups.clone(),
        })
    })
}

/// The value of a subject's attribute, such as `O`, that is of a pattern. Each value is looked at for
/// itself: in the subject as one text, a value could pass for another attribute.
fn attribute<'a>(subject: &'a X509Name<'_>, kind: &str, pattern: &str) -> Option<&'a str> {
    let mut attributes = subject.iter_attributes();
    attributes.find_map(|attribute| {
        let known = oid2abbrev(attribute.attr_type(), oid_registry()).ok()?;
        let value = attribute.as_str().ok()?;
        (known == kind && matches(pattern, value)).then_some(value)
    })
}

/// Whether a text is of a pattern in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(matches: CertificateMatch, user: Option<&str>) -> CertificateUser {
        CertificateUser {
            matches,
            user: user.map(str::to_owned),
            groups: vec!["ci".to_owned()],
        }
    }

    #[test]
    fn a_subject_or_an_alternative_name_is_a_user() {
        let names = ["node-1.nodes.example".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::OrganizationName, "acme");
        subject.push(rcgen::DnType::CommonName, "build-7");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let certificate = Certificate { der };
        let subject = |pattern: &str| CertificateMatch::Subject(pattern.to_owned());
        let san = |pattern: &str| CertificateMatch::AlternativeName(pattern.to_owned());
        for (matches, given, expected) in [
            (subject("build-*"), Some("builder"), Some("builder")),
            (subject("build-*"), None, Some("build-7")),
            (subject("build"), None, None),
            (subject("O=acm*"), Some("acme"), Some("acme")),
            (subject("O=acme"), None, Some("acme")),
            (subject("O=acm"), Some("acme"), None),
            (subject("CN=build-*"), None, Some("build-7")),
            (subject("OU=acme"), None, None),
            (subject("*O=acme*"), None, None),
            (san("*.nodes.example"), None, Some("node-1.nodes.example")),
            (san("build-*"), None, None),
        ] {
            let entries = [entry(matches.clone(), given)];
            let found = user(&certificate, &entries);
            let name = found.as_ref().map(|user| user.name.as_str());
            assert_eq!(name, expected, "{matches:?}");
        }
        let broken = Certificate { der: vec![0x30, 0] };
        assert_eq!(user(&broken, &[entry(subject("*"), None)]), None);
    }

    #[test]
    fn no_value_passes_for_another_attribute() {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, "x, O=acme");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let certificate = Certificate { der };
        for pattern in ["O=acme", "*O=acme", "*, O=acme", "CN=x"] {
            let pattern = CertificateMatch::Subject(pattern.to_owned());
            let found = user(&certificate, &[entry(pattern.clone(), Some("acme"))]);
            assert_eq!(found, None, "{pattern:?}");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("build-*", "build-7", true),
            ("build-*", "Build-7", false),
            ("build", "build-7", false),
            ("*", "", true),
            ("*.a.b", "x.y.a.b", true),
            ("*.a.b", "x.a.c", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
