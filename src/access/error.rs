//! Why a caller may not do something.

use std::borrow::Cow;

use crate::oci::{Classified, ErrorKind};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Denied {
    /// Who says who it is may be allowed to.
    #[error("credentials are needed for this repository")]
    Anonymous,
    #[error("access to this repository is denied")]
    Caller,
}

impl Classified for Denied {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Anonymous => ErrorKind::Unauthorized,
            Self::Caller => ErrorKind::Denied,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}
