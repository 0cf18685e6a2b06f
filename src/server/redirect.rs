//! Whether a GET of a blob is answered with a redirect to the bucket.

use std::future::Future;

use http::HeaderValue;

use super::answer;
use super::call::{Answered, Call};
use crate::bucket::Redirects;
use crate::metrics::{InFlight, Outcome};
use crate::oci::{Digest, Requested};

/// How a GET of a blob is answered.
pub(super) enum Way {
    /// The client gets the blob at this address.
    Redirect(HeaderValue),
    /// From here: the body counts among those that are being sent, where their number matters.
    Send(Option<InFlight>),
}

/// A GET of a blob, as far as redirects are concerned.
pub(super) struct Redirectable<'a> {
    call: &'a Call<'a>,
    ranges: Option<&'a Requested>,
    is_private: bool,
}

impl<'a> Redirectable<'a> {
    /// `is_private`: the access depends on the caller.
    pub(super) const fn new(
        call: &'a Call<'a>,
        ranges: Option<&'a Requested>,
        is_private: bool,
    ) -> Self {
        Self {
            call,
            ranges,
            is_private,
        }
    }

    /// Chooses the way. `find` is asked for the address only if the client is to be redirected.
    pub(super) async fn way<E>(
        self,
        redirects: &Redirects,
        find: impl Future<Output = Result<Option<HeaderValue>, E>>,
    ) -> Result<Way, E> {
        if !self.is_permitted(redirects) {
            return Ok(Way::Send(redirects.count()));
        }
        if let Some(counted) = redirects.admit() {
            return Ok(Way::Send(Some(counted)));
        }
        Ok(match find.await? {
            Some(location) => Way::Redirect(location),
            None => Way::Send(redirects.count()),
        })
    }

    fn is_permitted(&self, redirects: &Redirects) -> bool {
        // A replica answers its client itself.
        self.call.is_of_client()
            && (!self.is_private || redirects.permits_private())
            // The client repeats conditions, and the bucket has other entity tags.
            && !self.call.conditions.has_any()
            && self.ranges.is_none_or(Requested::is_single)
    }
}

/// The redirect to this address.
pub(super) fn answered(digest: &Digest, location: HeaderValue) -> Answered {
    (answer::redirect(digest, location), Outcome::Redirected)
}
