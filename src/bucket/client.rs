//! Requests to the object store.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::client::HttpClient;
use object_store::multipart::MultipartStore;
pub(super) use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload,
};
use tokio::time::timeout;
use url::Url;

use super::error::{BucketError, Told};
use super::http::Date;
use crate::clock::Clock;

/// How long the whole of a small object may take.
pub(super) const SMALL_TIME: Duration = Duration::from_secs(30);

/// An object, by its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// Below the root directory.
    pub(super) key: String,
    /// Bytes.
    pub(super) size: u64,
    /// By the bucket's clock.
    pub(super) modified: SystemTime,
}

/// An object on its way.
pub(super) struct Body {
    pub(super) object: Object,
    /// The bytes of the object that it has.
    pub(super) range: Range<u64>,
    pub(super) stream: BoxStream<'static, Result<Bytes, BucketError>>,
}

/// The answer to a request for a small object that may be known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Small {
    Missing,
    /// It still has the etag that was asked with.
    Unchanged,
    Whole(Bytes, Option<String>),
}

/// An upload in parts.
#[derive(Debug)]
pub(super) struct Parts {
    path: Path,
    id: String,
}

/// One object store and a root directory in it. Nothing is tried twice.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    stores: Arc<Stores>,
    root: Path,
    date: Arc<Date>,
    clock: Clock,
}

/// One store, as the traits that it has.
pub(super) struct Stores {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) parts: Arc<dyn MultipartStore>,
    /// None where addresses can't be signed.
    pub(super) signer: Option<Arc<dyn Signer>>,
    /// Of new objects.
    pub(super) attributes: Attributes,
    /// Sends requests with signed addresses: None where unfinished uploads can't be listed.
    pub(super) http: Option<HttpClient>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

impl Objects {
    pub(super) fn new(
        stores: Stores,
        root: &str,
        date: Arc<Date>,
        clock: Clock,
    ) -> Result<Self, BucketError> {
        Ok(Self {
            stores: Arc::new(stores),
            root: Path::parse(root).map_err(BucketError::failed)?,
            date,
            clock,
        })
    }

    /// The bucket's time, as far as it has told it.
    pub(super) fn now(&self) -> SystemTime {
        self.date.now().unwrap_or_else(|| self.clock.wall())
    }

    /// What is needed to list unfinished uploads. None where the store can't list them.
    pub(super) fn signed_requests(&self) -> Option<(&Arc<dyn Signer>, &HttpClient)> {
        Some((self.stores.signer.as_ref()?, self.stores.http.as_ref()?))
    }

    /// Each component of `key` is one of a digest, a name or a tag, or one of our own words.
    pub(super) fn path(&self, key: &str) -> Result<Path, BucketError> {
        let whole = match self.root.as_ref() {
            "" => key.to_owned(),
            root => format!("{root}/{key}"),
        };
        Path::parse(whole).map_err(BucketError::failed)
    }

    /// The key below the root directory of an object that has this key in the bucket.
    fn below_root<'a>(&self, key: &'a str) -> &'a str {
        match self.root.as_ref() {
            "" => key,
            root => key
                .strip_prefix(root)
                .map_or(key, |key| key.trim_start_matches('/')),
        }
    }

    /// An upload that was begun for an object with this key in the bucket, and its key below the root directory.
    pub(super) fn begun(&self, key: &str, id: String) -> Result<(Parts, String), BucketError> {
        let path = Path::parse(key).map_err(BucketError::failed)?;
        let below = self.below_root(path.as_ref()).to_owned();
        Ok((Parts { path, id }, below))
    }

    fn object(&self, meta: &ObjectMeta) -> Object {
        let key = self.below_root(meta.location.as_ref());
        Object {
            key: key.to_owned(),
            size: meta.size,
            modified: meta.last_modified.into(),
        }
    }

    /// The bytes of an object from `start` on, up to `end` (exclusive) or its own end. None where the object
    /// isn't there, or ends before `start`.
    pub(super) async fn get(
        &self,
        key: &str,
        start: u64,
        end: Option<u64>,
    ) -> Result<Option<Body>, BucketError> {
        let range = match (start, end) {
            (0, None) => None,
            (start, None) => Some(GetRange::Offset(start)),
            (start, Some(end)) => Some(GetRange::Bounded(start..end)),
        };
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let path = self.path(key)?;
        let Some(got) = found(self.stores.objects.get_opts(&path, options).await)? else {
            return Ok(None);
        };
        if got.attributes.get(&Attribute::ContentEncoding).is_some() {
            return Err(BucketError::Encoded);
        }
        let (object, range) = (self.object(&got.meta), got.range.clone());
        let stream = got.into_stream().map_err(failure).boxed();
        Ok(Some(Body {
            object,
            range,
            stream,
        }))
    }

    /// A small object, whole, unless it still has the etag `known`.
    pub(super) async fn get_small(
        &self,
        key: &str,
        limit: u64,
        known: Option<String>,
    ) -> Result<Small, BucketError> {
        let options = GetOptions {
            if_none_match: known,
            ..GetOptions::default()
        };
        let path = self.path(key)?;
        let got = match self.stores.objects.get_opts(&path, options).await {
            Err(Error::NotModified { .. }) => return Ok(Small::Unchanged),
            got => found(got)?,
        };
        let Some(got) = got else {
            return Ok(Small::Missing);
        };
        let etag = got.meta.e_tag.clone();
        let mut stream = got.into_stream().map_err(failure);
        let reading = async {
            let mut bytes = BytesMut::new();
            while let Some(piece) = stream.try_next().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > limit {
                    return Err(BucketError::TooLarge { limit });
                }
            }
            Ok(Small::Whole(bytes.freeze(), etag))
        };
        let read = timeout(SMALL_TIME, reading).await;
        read.unwrap_or(Err(BucketError::Late(SMALL_TIME)))
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<Object>, BucketError> {
        let path = self.path(key)?;
        let meta = found(self.stores.objects.head(&path).await)?;
        Ok(meta.map(|meta| self.object(&meta)))
    }

    /// Writes an object of these pieces.
    pub(super) async fn put(&self, key: &str, content: Vec<Bytes>) -> Result<(), BucketError> {
        let path = self.path(key)?;
        let options = PutOptions {
            attributes: self.stores.attributes.clone(),
            ..PutOptions::default()
        };
        let content = PutPayload::from_iter(content);
        let put = self.stores.objects.put_opts(&path, content, options);
        put.await.map(drop).map_err(failure)
    }

    /// Begins an upload in parts.
    pub(super) async fn begin_parts(&self, key: &str) -> Result<Parts, BucketError> {
        let path = self.path(key)?;
        let options = PutMultipartOptions {
            attributes: self.stores.attributes.clone(),
            ..PutMultipartOptions::default()
        };
        let id = self
            .stores
            .parts
            .create_multipart_opts(&path, options)
            .await;
        let id = id.map_err(failure)?;
        Ok(Parts { path, id })
    }

    pub(super) async fn put_part(
        &self,
        to: &Parts,
        index: usize,
        content: Vec<Bytes>,
    ) -> Result<PartId, BucketError> {
        let content = PutPayload::from_iter(content);
        let put = self.stores.parts.put_part(&to.path, &to.id, index, content);
        put.await.map_err(failure)
    }

    /// Makes the object of its parts, in this order.
    pub(super) async fn complete_parts(
        &self,
        to: &Parts,
        parts: Vec<PartId>,
    ) -> Result<(), BucketError> {
        let completing = self
            .stores
            .parts
            .complete_multipart(&to.path, &to.id, parts);
        completing.await.map(drop).map_err(failure)
    }

    pub(super) async fn abort_parts(&self, to: &Parts) -> Result<(), BucketError> {
        let aborting = self.stores.parts.abort_multipart(&to.path, &to.id);
        aborting.await.map_err(failure)
    }

    /// Copies an object within the bucket.
    pub(super) async fn copy(&self, from: &str, to: &str) -> Result<(), BucketError> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        let copied = self.stores.objects.copy(&from, &to).await;
        copied.map_err(failure)
    }

    /// Removes an object. One that isn't there is no error.
    pub(super) async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let path = self.path(key)?;
        found(self.stores.objects.delete(&path).await).map(drop)
    }

    /// All objects below a directory, in no particular order.
    pub(super) fn list(&self, prefix: &str) -> BoxStream<'static, Result<Object, BucketError>> {
        let path = match self.path(prefix) {
            Ok(path) => path,
            Err(error) => return futures_util::stream::iter([Err(error)]).boxed(),
        };
        let objects = self.clone();
        let listed = self.stores.objects.list(Some(&path)).map_err(failure);
        listed.map_ok(move |meta| objects.object(&meta)).boxed()
    }

    /// An address at which anybody can read the object for a while. None where the store can't sign one.
    pub(super) async fn signed(
        &self,
        key: &str,
        valid: Duration,
    ) -> Result<Option<Url>, BucketError> {
        let Some(signer) = &self.stores.signer else {
            return Ok(None);
        };
        let path = self.path(key)?;
        let url = signer.signed_url(Method::GET, &path, valid).await;
        url.map(Some).map_err(failure)
    }
}

/// None where there is no such object.
fn found<T>(result: object_store::Result<T>) -> Result<Option<T>, BucketError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failure(error)),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "errors are mapped with it, and end here"
)]
fn failure(error: Error) -> BucketError {
    let is_refused = matches!(
        error,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
    );
    let told = Arc::new(Told::of(&error));
    if is_refused {
        BucketError::Refused(told)
    } else {
        BucketError::Failed(told)
    }
}
