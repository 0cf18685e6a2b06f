//! What clients send to the built-in token service, and what they get (distribution's "Token
//! Authentication Specification" and "OAuth2 Token Authentication").

use serde_json::json;

use super::AuthError;
use super::authorization::Basic;

/// The longest form, in bytes.
pub const MAX_FORM: usize = 16 * 1024;
/// Scopes of one request.
const MAX_SCOPES: usize = 64;
/// What tokens are for; clients send it back, and nothing depends on it.
pub(super) const SERVICE: &str = "millpond";

/// A parsed request for a token.
#[derive(Debug, Default)]
pub struct TokenRequest {
    /// The name of the upstream in the path.
    pub upstream: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) grant: Option<Grant>,
}

/// The credentials within a form.
#[derive(Debug)]
pub(super) enum Grant {
    Password(Basic),
    /// A token that the client has stored: an identity token of an OIDC issuer.
    Refresh(Basic),
}

impl TokenRequest {
    /// Parses the query of a GET.
    pub fn of_query(upstream: Option<&str>, query: &str) -> Result<Self, AuthError> {
        let form = Form::parse(query.as_bytes())?;
        Ok(Self {
            upstream: upstream.map(str::to_owned),
            scopes: form.scopes,
            grant: None,
        })
    }

    /// Parses the form of a POST.
    pub fn of_form(upstream: Option<&str>, body: &[u8]) -> Result<Self, AuthError> {
        let form = Form::parse(body)?;
        let grant = match (
            form.grant.as_deref(),
            form.user,
            form.password,
            form.refresh,
        ) {
            (Some("password"), Some(user), Some(password), _) => (!user.is_empty()
                || !password.is_empty())
            .then(|| Grant::Password(Basic::new(user, password))),
            (Some("refresh_token"), _, _, Some(token)) => {
                Some(Grant::Refresh(Basic::new(String::new(), token)))
            }
            _ => return Err(AuthError::Malformed("the grant_type isn't supported")),
        };
        Ok(Self {
            upstream: upstream.map(str::to_owned),
            scopes: form.scopes,
            grant,
        })
    }

    /// Whether the client wants to know whether its credentials are right, as `docker login` does.
    pub(super) fn is_login(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Whether the client wants to pull and nothing else.
    pub(super) fn is_pull(&self) -> bool {
        let is_pull = |scope: &String| {
            let mut parts = scope.splitn(2, ':');
            let repository = parts.next() == Some("repository");
            let actions = parts.next().and_then(|rest| rest.rsplit_once(':'));
            repository && actions.is_some_and(|(_, actions)| actions == "pull")
        };
        !self.scopes.is_empty() && self.scopes.iter().all(is_pull)
    }
}

#[derive(Default)]
struct Form {
    scopes: Vec<String>,
    grant: Option<String>,
    user: Option<String>,
    password: Option<String>,
    refresh: Option<String>,
}

impl Form {
    fn parse(text: &[u8]) -> Result<Self, AuthError> {
        if text.len() > MAX_FORM {
            return Err(AuthError::Malformed("the request for a token is too long"));
        }
        let mut form = Self::default();
        for (key, value) in url::form_urlencoded::parse(text) {
            match &*key {
                "scope" => form
                    .scopes
                    .extend(value.split_ascii_whitespace().map(str::to_owned)),
                "grant_type" => form.grant = Some(value.into_owned()),
                "username" => form.user = Some(value.into_owned()),
                "password" => form.password = Some(value.into_owned()),
                "refresh_token" => form.refresh = Some(value.into_owned()),
                _ => {}
            }
        }
        if form.scopes.len() > MAX_SCOPES {
            return Err(AuthError::Malformed(
                "the request for a token has too many scopes",
            ));
        }
        Ok(form)
    }
}

/// The document with a token. `access_token` is OAuth2's name for it.
pub(super) fn document(token: &str, lifetime: u64, issued: std::time::SystemTime) -> Vec<u8> {
    let issued = humantime::format_rfc3339_seconds(issued).to_string();
    let document = json!({
        "token": token,
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": lifetime,
        "issued_at": issued,
    });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pulls_of_repositories_are_pulls() {
        for (query, expected) in [
            ("scope=repository:a/b:pull", true),
            ("scope=repository:a:pull&scope=repository:b:pull", true),
            ("scope=repository:a:pull%20repository:b:pull", true),
            ("scope=repository:host:5000/a:pull", true),
            ("", false),
            ("scope=", false),
            ("scope=repository:a:pull,push", false),
            ("scope=repository:a:push", false),
            ("scope=repository:a:pull%20repository:b:push", false),
            ("scope=registry:catalog:*", false),
            ("scope=repository:pull", false),
        ] {
            let request = TokenRequest::of_query(None, query).unwrap();
            assert_eq!(request.is_pull(), expected, "{query}");
        }
    }

    #[test]
    fn forms_are_bounded_and_their_grants_known() {
        let parse = |form: &str| TokenRequest::of_form(None, form.as_bytes());
        let password = parse("grant_type=password&username=u&password=p%26q").unwrap();
        let Some(Grant::Password(basic)) = password.grant else {
            panic!("no password");
        };
        assert_eq!((basic.user.as_str(), basic.password()), ("u", "p&q"));
        let refresh = parse("grant_type=refresh_token&refresh_token=t").unwrap();
        assert!(matches!(refresh.grant, Some(Grant::Refresh(_))));
        for form in [
            "",
            "grant_type=client_credentials",
            "grant_type=password&username=u",
            "grant_type=refresh_token",
            &format!(
                "grant_type=password&username=u&password={}",
                "p".repeat(MAX_FORM)
            ),
            &format!(
                "grant_type=password&username=u&password=p&scope={}",
                "a+".repeat(100)
            ),
        ] {
            assert!(parse(form).is_err());
        }
    }
}
