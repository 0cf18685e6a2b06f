//! Which replica answers for what, and how replicas recognise each other's messages (`replicas`).
//!
//! Several millponds behind one address divide the work: each digest and each tag has an *owner* among the
//! [`Members`], by rendezvous hashing. The others ask the owner instead of the upstream, and it asks the
//! upstream. [`Marks`] sign the requests that replicas send each other, and the answers. Hosted repositories
//! have one writer, to which the others relay requests for a [`RelayedCaller`].
//!
//! Nothing here is agreed on: two replicas may know different members, and then one more request goes to
//! the upstream. Pure: the caller brings the addresses and the time. The requests themselves are sent by
//! [`crate::upstream`], and answered by [`crate::server`].
//!
//! What must never happen: a request of somebody else than a replica is taken for one; a request of a
//! replica waits for another replica, which may be waiting for it; a client says for which caller a request
//! is relayed.

mod caller;
mod marks;
mod members;

pub use caller::RelayedCaller;
pub use marks::{CALLER, Marks, Nonce, PEER, RandomError, Subject, UPSTREAM};
pub use members::{MAX_ASKED, MAX_MEMBERS, Members, score};
