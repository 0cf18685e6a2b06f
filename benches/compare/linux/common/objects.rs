//! What the upstream answers as a bucket of S3's protocol, in the path style. The objects are the files of
//! the content; what is put is received and forgotten. Signatures aren't checked.

use http::Method;

/// The bucket's name.
pub(crate) const BUCKET: &str = "bucket";

/// A request to the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// GET or HEAD of the object with this key.
    Read(&'a str),
    /// One that has a body, and the document that answers it.
    Write(&'static str),
    List,
    Delete,
}

/// None where the path isn't one of the bucket.
pub(super) fn parse<'a>(
    method: &Method,
    path: &'a str,
    query: Option<&str>,
) -> Option<Request<'a>> {
    let path = path.strip_prefix('/')?.strip_prefix(BUCKET)?;
    let query = query.unwrap_or_default();
    let key = match path.strip_prefix('/').unwrap_or(path) {
        "" => return (*method == Method::GET).then_some(Request::List),
        // The key is joined with a directory of this machine.
        key if key.split('/').any(|part| part == "..") => return None,
        key => key,
    };
    match *method {
        Method::GET | Method::HEAD => Some(Request::Read(key)),
        Method::DELETE => Some(Request::Delete),
        Method::POST if query.contains("uploadId=") => Some(Request::Write(COMPLETED)),
        Method::POST => Some(Request::Write(BEGUN)),
        Method::PUT => Some(Request::Write("")),
        _ => None,
    }
}

pub(super) const NOTHING: &str = "<Error><Code>NoSuchKey</Code></Error>";
pub(super) const EMPTY_LIST: &str =
    "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
const BEGUN: &str =
    "<InitiateMultipartUploadResult><UploadId>upload</UploadId></InitiateMultipartUploadResult>";
const COMPLETED: &str =
    "<CompleteMultipartUploadResult><ETag>made</ETag></CompleteMultipartUploadResult>";
