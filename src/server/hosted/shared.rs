//! Reads of hosted repositories from the bucket, where another replica writes them.

use super::HostedHandlers;
use crate::mirror::ReadMode;
use crate::oci::{Action, Reference, Requested};
use crate::server::call::{Answered, Call, CallError};
use crate::server::conditional::Verdict;

impl HostedHandlers {
    /// What the bucket has, to which the writer has promised all that it has accepted. The caller may read
    /// it. None: the writer is to be asked.
    pub(super) async fn read_bucket(
        &self,
        action: &Action,
        call: &Call<'_>,
    ) -> Result<Option<Answered>, CallError> {
        match action {
            Action::Manifest { name, reference } => {
                let Some(found) = self.mirror.hosted_manifest(name, reference).await else {
                    return Ok(None);
                };
                if let Reference::Tag(_) = reference {
                    let digest = found.found.known().digest;
                    call.permits_content(&self.access, name, reference, &digest)?;
                }
                Ok(Some(self.give_manifest(call, reference, &found)))
            }
            Action::Blob { name, digest } => {
                let ranges = call.conditions.ranges(digest);
                let ranges = ranges.filter(|_| call.mode == ReadMode::Content);
                let refused = ranges.is_some_and(Requested::never_satisfiable);
                // Who gets no byte of the blob must not make this replica download it.
                let want = match call.conditions.evaluate(digest) {
                    Verdict::Proceed if !refused => call.mode,
                    _ => ReadMode::Head,
                };
                let finding = self
                    .mirror
                    .hosted_blob(name, *digest, want, ranges, call.client);
                let found = Box::pin(finding).await?;
                Ok(found.map(|found| self.give_blob(call, (name, digest), want, found)))
            }
            _ => Ok(None),
        }
    }
}
