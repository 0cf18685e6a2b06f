//! Stages and readers that fail.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::Operation;
use super::script::Script;
use crate::storage::{Modified, ReadGate, Reader, Stage, StoreError};

/// What a reader's reads meet.
#[derive(Debug)]
pub(super) struct Gate(pub(super) Arc<Script>);

#[async_trait::async_trait]
impl ReadGate for Gate {
    async fn pass(&self) -> Result<usize, StoreError> {
        self.0.pass(Operation::Read).await
    }

    fn pass_blocking(&self) -> Result<usize, StoreError> {
        self.0.pass_blocking(Operation::Read)
    }
}

#[derive(Debug)]
pub(super) struct FaultyStage {
    inner: Box<dyn Stage>,
    script: Arc<Script>,
    /// A write failed here, so the stage within lacks data without knowing it.
    broken: bool,
}

impl FaultyStage {
    pub(super) fn new(inner: Box<dyn Stage>, script: Arc<Script>) -> Self {
        Self {
            inner,
            script,
            broken: false,
        }
    }

    fn pass(&self, operation: Operation) -> Result<(), StoreError> {
        if self.broken {
            let path = PathBuf::from("a faulty stage");
            return Err(StoreError::Incomplete { path });
        }
        self.script.pass_blocking(operation).map(drop)
    }
}

impl Stage for FaultyStage {
    fn content(&self) -> Reader {
        Reader::gated(
            self.inner.content(),
            Arc::new(Gate(Arc::clone(&self.script))),
        )
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let passed = self.pass(Operation::Write);
        self.broken |= passed.is_err();
        passed?;
        self.inner.write_at(offset, chunks)
    }

    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError> {
        self.script.pass_blocking(Operation::Checkpoint)?;
        self.inner.checkpoint(total, sync)
    }

    fn leave(self: Box<Self>) {
        self.inner.leave();
    }

    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        self.pass(Operation::Commit)?;
        self.inner.commit()
    }
}
