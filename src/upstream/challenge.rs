//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1; parameters of Bearer as in
//! distribution's token authentication specification).
//!
//! A pure parser, more tolerant than the grammar, because registries are less strict than it:
//! several challenges on one line or many, quoted and unquoted values (also unquoted URLs), any
//! case, any white space. Whatever can't be read is skipped, never guessed.

use std::iter::Peekable;
use std::str::Chars;

/// Bytes of all challenge lines together that are looked at; a longer set is ignored from there.
pub(super) const MAX_HEADER: usize = 8 * 1024;
/// Challenges read, known or not.
pub(super) const MAX_CHALLENGES: usize = 8;
/// Parameters read of one challenge.
const MAX_PARAMETERS: usize = 16;

/// A challenge that can be answered. Other schemes are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        /// Address of the token service, as it was sent; never empty.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Reads the values of all `WWW-Authenticate` lines, in their order.
pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut budget = MAX_HEADER;
    let mut found = Vec::new();
    for line in lines {
        let Some(left) = budget.checked_sub(line.len()) else {
            break;
        };
        budget = left;
        scan(line, &mut found);
    }
    found.into_iter().filter_map(Raw::known).collect()
}

/// A challenge of any scheme.
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn known(self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: self.parameter("realm")?,
                service: self.parameter("service"),
                scope: self.parameter("scope"),
            }),
            _ => None,
        }
    }

    /// The first parameter of that name, unless it is empty.
    fn parameter(&self, name: &str) -> Option<String> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key == name)?;
        (!value.is_empty()).then(|| value.clone())
    }
}

/// A word followed by `=` is a parameter of the challenge before it; any other word is a scheme.
fn scan(line: &str, found: &mut Vec<Raw>) {
    let mut scanner = Scanner(line.chars().peekable());
    let mut current: Option<Raw> = None;
    loop {
        scanner.skip(|c| is_blank(c) || c == ',');
        let word = scanner.take(|c| !is_blank(c) && !matches!(c, ',' | '=' | '"'));
        if word.is_empty() {
            // A stray `=` or quote: pass over it, with what it quotes.
            match scanner.0.peek() {
                None => break,
                Some('"') => drop(scanner.quoted()),
                Some(_) => drop(scanner.0.next()),
            }
            continue;
        }
        scanner.skip(is_blank);
        if scanner.0.next_if_eq(&'=').is_some() {
            scanner.skip(is_blank);
            let value = scanner.value();
            let parameters = current.as_mut().map(|raw| &mut raw.parameters);
            let room = parameters.filter(|parameters| parameters.len() < MAX_PARAMETERS);
            if let (Some(parameters), Some(value)) = (room, value) {
                parameters.push((word.to_ascii_lowercase(), value));
            }
        } else {
            found.extend(current.take());
            if found.len() >= MAX_CHALLENGES {
                return;
            }
            current = Some(Raw {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
        }
    }
    found.extend(current);
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

struct Scanner<'a>(Peekable<Chars<'a>>);

impl Scanner<'_> {
    fn skip(&mut self, mut is_skipped: impl FnMut(char) -> bool) {
        while self.0.next_if(|c| is_skipped(*c)).is_some() {}
    }

    fn take(&mut self, mut is_taken: impl FnMut(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.0.next_if(|c| is_taken(*c)) {
            taken.push(c);
        }
        taken
    }

    /// A quoted string, or everything up to a blank or comma: an unquoted URL holds `:`, `/`, `?`
    /// and `=`, none of which the grammar allows in a token.
    fn value(&mut self) -> Option<String> {
        if self.0.peek() == Some(&'"') {
            return self.quoted();
        }
        Some(self.take(|c| !is_blank(c) && c != ','))
    }

    /// A quoted string; `None` when it doesn't end.
    fn quoted(&mut self) -> Option<String> {
        self.0.next_if_eq(&'"')?;
        let mut text = String::new();
        loop {
            match self.0.next()? {
                '"' => return Some(text),
                '\\' => text.push(self.0.next()?),
                c => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Challenge::Bearer {
            realm: realm.into(),
            service: some(service),
            scope: some(scope),
        }
    }

    #[test]
    fn challenges_of_registries_are_parsed() {
        let url = "https://auth.example/token";
        let full = bearer(url, "registry.example", "repository:a/b:pull,push");
        for line in [
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
            r#"BEARER Realm = "https://auth.example/token" , SERVICE=registry.example ,scope="repository:a/b:pull,push", error="invalid_token""#,
            "bearer\trealm=https://auth.example/token, service=registry.example,, scope=\"repository:a/b:pull,push\",",
            r#"Bearer service="registry.example", realm="https:\/\/auth.example/token", scope="repository:a/b:pull,push", realm="https://second.example""#,
        ] {
            assert_eq!(parse([line]), std::slice::from_ref(&full), "{line}");
        }
        assert_eq!(
            parse(["Bearer realm=https://auth.example/token?x=1,service=s"]),
            [bearer("https://auth.example/token?x=1", "s", "")]
        );
    }

    #[test]
    fn several_challenges_on_one_line_or_many() {
        let expected = [Challenge::Basic, bearer("https://a/t", "s", "")];
        let basic = r#"Basic realm="a, Bearer realm=b", charset="UTF-8""#;
        let token = r#"Bearer realm="https://a/t",service="s""#;
        assert_eq!(parse([basic, token]), expected);
        assert_eq!(parse([format!("{basic}, {token}").as_str()]), expected);
        let unknown =
            format!("Negotiate, NTLM TlRMTVNTUAA==, {basic}, {token}, Digest realm=\"x\"");
        assert_eq!(parse([unknown.as_str()]), expected);
        assert_eq!(parse(["Basic"]), [Challenge::Basic]);
    }

    #[test]
    fn unanswerable_challenges_are_left_out() {
        for line in [
            "",
            ",,,",
            "Bearer",
            "Bearer service=\"s\"",
            "Bearer realm=\"\"",
            "Bearer realm=\"https://unfinished",
            "realm=\"https://no.scheme\"",
            "\"Bearer realm=x\"",
            "===",
        ] {
            assert_eq!(parse([line]), [], "{line}");
        }
    }

    #[test]
    fn a_flood_is_bounded() {
        let many = "Basic, ".repeat(1000);
        assert_eq!(parse([many.as_str()]).len(), MAX_CHALLENGES);
        let long = format!("Bearer realm=\"https://a/{}\"", "x".repeat(MAX_HEADER));
        assert_eq!(parse(["Basic", long.as_str()]), [Challenge::Basic]);
        let padded = format!("Bearer {}realm=x", "p=1,".repeat(MAX_PARAMETERS));
        assert_eq!(parse([padded.as_str()]), []);
    }

    fn render(challenge: &Challenge, quote: bool) -> String {
        let Challenge::Bearer {
            realm,
            service,
            scope,
        } = challenge
        else {
            return "Basic realm=\"r\"".into();
        };
        let all = [
            ("realm", Some(realm)),
            ("service", service.as_ref()),
            ("scope", scope.as_ref()),
        ];
        let rendered = all.into_iter().filter_map(|(name, value)| {
            let value = value?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || ":/.".contains(c);
            if !quote && value.chars().all(is_plain) {
                return Some(format!("{name}={value}"));
            }
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            Some(format!("{name}=\"{escaped}\""))
        });
        format!("Bearer {}", rendered.collect::<Vec<_>>().join(","))
    }

    fn any_challenge() -> impl Strategy<Value = Challenge> {
        let text = "[ -~]{1,20}";
        let token = (text, proptest::option::of(text), proptest::option::of(text));
        prop_oneof![
            Just(Challenge::Basic),
            token.prop_map(|(realm, service, scope)| Challenge::Bearer {
                realm,
                service,
                scope
            }),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_within_bounds(lines in proptest::collection::vec("\\PC{0,60}", 0..4)) {
            prop_assert!(parse(lines.iter().map(String::as_str)).len() <= 4 * MAX_CHALLENGES);
        }

        #[test]
        fn nearly_valid_text_is_parsed_without_panic(line in "(Bearer|Basic|realm|=|\"|,| |\\\\|x){0,30}") {
            parse([line.as_str()]);
        }

        #[test]
        fn rendered_challenges_parse_back(
            challenges in proptest::collection::vec(any_challenge(), 1..4),
            quote: bool,
            one_line: bool,
        ) {
            let lines: Vec<String> = challenges.iter().map(|one| render(one, quote)).collect();
            let joined = [lines.join(" , ")];
            let lines = if one_line { &joined[..] } else { &lines[..] };
            prop_assert_eq!(parse(lines.iter().map(String::as_str)), challenges);
        }
    }
}
