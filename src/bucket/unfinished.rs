//! Uploads in parts that have begun and neither ended nor failed. The crate of the store can't list them; S3
//! does (`ListMultipartUploads`), for a request with a signed address.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions};
use serde::Deserialize;

use super::client::{Objects, Parts};
use super::error::{BucketError, Told};

/// Pages of a list that are read, 1,000 uploads each; the others have to wait for the next sweep.
const MAX_PAGES: usize = 100;
/// How long an address is valid.
const VALID: Duration = Duration::from_mins(5);

/// An upload that has begun.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Below the root directory.
    pub(super) key: String,
    pub(super) begun: SystemTime,
    pub(super) parts: Parts,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    upload_id: String,
    /// RFC 3339.
    initiated: String,
}

impl Objects {
    /// The unfinished uploads below a directory. None at a store that doesn't list them.
    pub(super) async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, BucketError> {
        let prefix = format!("{}/", self.path(prefix)?);
        let (mut found, mut markers) = (Vec::new(), (String::new(), String::new()));
        for _ in 0..MAX_PAGES {
            let Some(page) = self.uploads_page(&prefix, &markers).await? else {
                break;
            };
            for upload in page.uploads {
                let begun = humantime::parse_rfc3339(&upload.initiated);
                let parts = self.begun(&upload.key, upload.upload_id);
                if let (Ok(begun), Ok((parts, key))) = (begun, parts) {
                    found.push(Unfinished { key, begun, parts });
                }
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if !page.is_truncated || next == markers {
                break;
            }
            markers = next;
        }
        Ok(found)
    }

    /// None where the store doesn't know the request.
    async fn uploads_page(
        &self,
        prefix: &str,
        (key, id): &(String, String),
    ) -> Result<Option<Page>, BucketError> {
        let Some((signer, client)) = self.signed_requests() else {
            return Ok(None);
        };
        let mut query = vec![("uploads", ""), ("prefix", prefix)];
        if !key.is_empty() {
            query.extend([("key-marker", &**key), ("upload-id-marker", &**id)]);
        }
        let options = SignedUrlOptions::new().with_query(query);
        let root = Path::ROOT;
        let signing = signer.signed_url_opts(Method::GET, &root, VALID, &options);
        let url = signing.await.map_err(BucketError::failed)?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(BucketError::failed)?;
        let answer = client.execute(request).await;
        let answer = answer.map_err(|error| BucketError::failed(Told::of(&error)))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let told = "unfinished uploads can't be listed".to_owned();
                return Err(BucketError::Refused(Arc::new(Told(told))));
            }
            status if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => {
                tracing::debug!(%status, "the bucket doesn't list unfinished uploads");
                return Ok(None);
            }
            status => {
                let told = format!("unfinished uploads can't be listed: {status}");
                return Err(BucketError::failed(Told(told)));
            }
        }
        let bytes = answer.into_body().bytes().await;
        let bytes = bytes.map_err(|error| BucketError::failed(Told::of(&error)))?;
        let page = quick_xml::de::from_reader(&*bytes).map_err(BucketError::failed)?;
        Ok(Some(page))
    }
}
