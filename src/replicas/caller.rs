//! The client for which a request is relayed, as one replica tells another.

use std::net::IpAddr;

use url::form_urlencoded;

/// Bytes of the encoded text at most: a head has room for it.
const MAX_TEXT: usize = 8 * 1024;

/// The client for which a replica relays a request, in the names of the access rules. The replica that the
/// client asked has identified and authorized it; the writer needs it for its audit log, and to decide which
/// other repositories a push may take content from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayedCaller {
    /// None for an anonymous client.
    pub user: Option<String>,
    pub groups: Vec<String>,
    /// None where it isn't known.
    pub address: Option<IpAddr>,
    /// What a token permits, each as `type:name:action,action`. None is no limit.
    pub scopes: Option<Vec<String>>,
}

impl RelayedCaller {
    /// The text of the field: a form in ASCII (`user=ann&group=dev`). Groups and scopes that are too long
    /// for a field are left out, so that the client may do less.
    pub fn encode(&self) -> String {
        let whole = self.form(true);
        if whole.len() <= MAX_TEXT {
            return whole;
        }
        self.form(false)
    }

    fn form(&self, is_whole: bool) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        if let Some(user) = &self.user {
            form.append_pair("user", user);
        }
        if let Some(address) = self.address {
            form.append_pair("address", &address.to_string());
        }
        if !is_whole || self.scopes.is_some() {
            form.append_pair("limited", "");
        }
        if is_whole {
            for group in &self.groups {
                form.append_pair("group", group);
            }
            for scope in self.scopes.iter().flatten() {
                form.append_pair("scope", scope);
            }
        }
        form.finish()
    }

    /// Reads the field. None where it isn't what [`encode`](Self::encode) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut caller = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "user" if caller.user.is_none() => caller.user = Some(value),
                "address" if caller.address.is_none() => caller.address = Some(value.parse().ok()?),
                "group" => caller.groups.push(value),
                "limited" => drop(caller.scopes.get_or_insert_default()),
                "scope" => caller.scopes.as_mut()?.push(value),
                _ => return None,
            }
        }
        Some(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_read_as_it_was_written() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        for caller in [
            RelayedCaller::default(),
            RelayedCaller {
                user: Some("ann".to_owned()),
                groups: texts(&["dev", "a&b=c\n", "größe"]),
                address: Some("fd00::1".parse().unwrap()),
                scopes: None,
            },
            RelayedCaller {
                user: Some(String::new()),
                scopes: Some(Vec::new()),
                ..RelayedCaller::default()
            },
            RelayedCaller {
                scopes: Some(texts(&[
                    "repository:ci/app:pull,push",
                    "registry:catalog:*",
                ])),
                ..RelayedCaller::default()
            },
        ] {
            let text = caller.encode();
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
            assert_eq!(RelayedCaller::parse(&text), Some(caller));
        }
    }

    #[test]
    fn a_caller_that_is_too_long_may_do_less() {
        let scopes = (0..1_000).map(|number| format!("repository:ci/app-{number}:pull"));
        let long = RelayedCaller {
            user: Some("ann".to_owned()),
            groups: vec!["dev".to_owned()],
            address: None,
            scopes: Some(scopes.collect()),
        };
        let read = RelayedCaller::parse(&long.encode()).unwrap();
        assert_eq!(read.user, long.user);
        assert_eq!((read.groups, read.scopes), (Vec::new(), Some(Vec::new())));
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        for text in ["admin=1", "address=x", "user=a&user=b", "scope=a:b:c"] {
            assert_eq!(RelayedCaller::parse(text), None, "{text}");
        }
    }
}
