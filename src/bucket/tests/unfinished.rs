//! Uploads that were never finished, at a store that answers as S3 does.

use async_trait::async_trait;
use http::StatusCode;
use http_body_util::BodyExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{Attributes, ClientOptions};
use parking_lot::Mutex;

use super::*;
use crate::bucket::client::Stores;
use crate::bucket::http::Date;
use crate::bucket::sweep::end_uploads;

/// What the bucket was asked, and what it answers to the lists, the last one first.
#[derive(Debug, Default)]
struct Script {
    asked: Mutex<Vec<String>>,
    lists: Mutex<Vec<(StatusCode, String)>>,
}

#[derive(Debug, Clone, Default)]
struct Scripted(Arc<Script>);

#[async_trait]
impl HttpService for Scripted {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (method, uri) = (request.method(), request.uri());
        let query = uri.query().unwrap_or_default();
        let query: Vec<_> = query
            .split('&')
            .filter(|pair| !pair.starts_with("X-Amz"))
            .collect();
        let asked = format!("{method} {}?{}", uri.path(), query.join("&"));
        let (status, body) = match method.as_str() {
            "GET" => self.0.lists.lock().pop().unwrap(),
            _ => (StatusCode::NO_CONTENT, String::new()),
        };
        self.0.asked.lock().push(asked);
        let body = HttpResponseBody::new(
            http_body_util::Full::new(Bytes::from(body)).map_err(|never| match never {}),
        );
        let mut answer = HttpResponse::new(body);
        *answer.status_mut() = status;
        Ok(answer)
    }
}

impl HttpConnector for Scripted {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl Scripted {
    fn objects(&self) -> Objects {
        let store = AmazonS3Builder::new()
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_region("eu-1")
            .with_bucket_name("shared")
            .with_endpoint("http://127.0.0.1:9")
            .with_allow_http(true)
            .with_http_connector(self.clone());
        let store = Arc::new(store.build().unwrap());
        let stores = Stores {
            objects: Arc::clone(&store) as _,
            parts: Arc::clone(&store) as _,
            signer: Some(store),
            attributes: Attributes::new(),
            http: Some(HttpClient::new(self.clone())),
        };
        let clock = Clock::starting_at(epoch());
        Objects::new(stores, "a/root", Arc::new(Date::default()), clock).unwrap()
    }

    /// Answers the lists of both algorithms.
    fn answer(&self, lists: &[(u16, String)]) {
        let lists = lists.iter().rev();
        let lists =
            lists.map(|(status, body)| (StatusCode::from_u16(*status).unwrap(), body.clone()));
        *self.0.lists.lock() = lists.collect();
    }
}

fn listed(uploads: &[(&str, &str, Duration)], next: Option<(&str, &str)>) -> String {
    let next = next.map_or(
        "<IsTruncated>false</IsTruncated>".to_owned(),
        |(key, id)| {
            format!(
                "<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>\
             <IsTruncated>true</IsTruncated>"
            )
        },
    );
    let upload = |(key, id, age): &(&str, &str, Duration)| {
        let begun = humantime::format_rfc3339_millis(epoch() - *age);
        format!(
            "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Owner><ID>x</ID></Owner>\
             <StorageClass>STANDARD</StorageClass><Initiated>{begun}</Initiated></Upload>"
        )
    };
    let uploads: Vec<_> = uploads.iter().map(upload).collect();
    let name = "ListMultipartUploadsResult";
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <{name} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>shared</Bucket>\
         {next}{}</{name}>",
        uploads.concat()
    )
}

#[tokio::test(start_paused = true)]
async fn uploads_of_content_end_a_day_after_they_began() {
    let store = Scripted::default();
    let key = |text: &str| {
        format!(
            "a/root/{}",
            keys::blob(&Digest::of(Algorithm::Sha256, text.as_bytes()))
        )
    };
    let (old, young, older) = (key("old"), key("young"), key("older"));
    store.answer(&[
        (
            200,
            listed(
                &[
                    (&old, "1&amp;a", DAY),
                    (&young, "2", HOUR * 23),
                    (
                        "a/root/docker/registry/v2/blobs/sha256/00/notes",
                        "3",
                        DAY * 9,
                    ),
                ],
                Some((&young, "2")),
            ),
        ),
        (200, listed(&[(&older, "4", DAY * 9)], None)),
        (200, listed(&[], None)),
    ]);
    assert_eq!(end_uploads(&store.objects(), epoch()).await.unwrap(), 2);
    let asked = store.0.asked.lock().clone();
    let directory = "a%2Froot%2Fdocker%2Fregistry%2Fv2%2Fblobs%2Fsha";
    let marker = young.replace('/', "%2F");
    assert_eq!(
        asked,
        [
            format!("GET /shared/?uploads=&prefix={directory}256%2F"),
            format!(
                "GET /shared/?uploads=&prefix={directory}256%2F&key-marker={marker}&upload-id-marker=2"
            ),
            format!("DELETE /shared/{old}?uploadId=1%26a"),
            format!("DELETE /shared/{older}?uploadId=4"),
            format!("GET /shared/?uploads=&prefix={directory}512%2F"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_list_uploads_has_none() {
    for status in [400, 404, 405, 501] {
        let store = Scripted::default();
        store.answer(&[(status, String::new()), (status, String::new())]);
        assert_eq!(end_uploads(&store.objects(), epoch()).await.unwrap(), 0);
    }
    for (status, body) in [(403, ""), (503, ""), (200, "<html>"), (200, "{}")] {
        let store = Scripted::default();
        store.answer(&vec![(status, body.to_owned()); 3]);
        end_uploads(&store.objects(), epoch()).await.unwrap_err();
    }
}
