//! Why a caller isn't accepted.

use std::borrow::Cow;

use crate::oci::{Classified, ErrorKind};

#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    #[error("the request needs credentials, and those it has aren't valid")]
    Refused,
}

impl Classified for AuthError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused => ErrorKind::Unauthorized,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}
