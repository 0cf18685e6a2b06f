//! The body of a push, for those who store it.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};

use super::request::{RequestBody, RequestBodyError};
use super::turn::{TURN, Turn};
use crate::hosted::{BodyError, PushBody};

/// A body that is read in turns.
#[derive(Debug)]
pub(super) struct UploadBody {
    body: RequestBody,
    /// Nothing more is read from it.
    ended: bool,
    turn: Turn,
}

impl UploadBody {
    pub(super) fn new(body: RequestBody) -> Self {
        Self {
            body,
            ended: false,
            turn: Turn::of(TURN),
        }
    }

    /// Reads the whole body; none where it has more than `max` bytes.
    pub(super) async fn whole(&mut self, max: usize) -> Result<Option<Bytes>, BodyError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if whole.len() + bytes.len() > max {
                return Ok(None);
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(Some(whole.freeze()))
    }

    /// Whether the request has no body.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_at_end()
    }

    /// What wasn't read of the body, if more may come.
    pub(super) fn unread(self) -> Option<RequestBody> {
        Some(self.body).filter(|body| !self.ended && !body.is_at_end())
    }
}

#[async_trait::async_trait]
impl PushBody for UploadBody {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.ended {
            return Ok(None);
        }
        poll_fn(|cx| self.turn.poll(cx)).await;
        let next = self.body.next().await.map_err(|error| match error {
            RequestBodyError::Silent => BodyError::Timeout,
            error => BodyError::Broken(Box::new(error)),
        });
        match &next {
            Ok(Some(bytes)) => self.turn.count(bytes.len()),
            Ok(None) | Err(_) => self.ended = true,
        }
        next
    }
}
