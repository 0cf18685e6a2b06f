//! The body of a push, as the server hands it over.

use bytes::Bytes;

/// The bytes that a client sends. The server ends one that brings no byte for a minute.
#[async_trait::async_trait]
pub trait PushBody: Send {
    /// The next bytes; none at the end of a complete body. Cancel safe.
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError>;
}

/// Why a body ended early. The bytes before that are kept.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client sent no byte for a minute")]
    Timeout,
    #[error("the connection broke: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a request says of the bytes that its body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// The offset of the first byte, from `Content-Range`; none is "behind those received".
    pub start: Option<u64>,
    /// The offset after the last byte, from `Content-Range`.
    pub end: Option<u64>,
    /// From `Content-Length`; none for a chunked body.
    pub length: Option<u64>,
}

impl Part {
    /// Of a request without a body.
    pub const NONE: Self = Self {
        start: None,
        end: None,
        length: Some(0),
    };
}
