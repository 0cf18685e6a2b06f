//! What operators ask. Metrics and health are on a listener of their own (`http.debug.addr`), which
//! clients of the registry can't reach; listing and purging ([`operate`]) on a unix socket of the data
//! directory ([`socket`]).

pub mod operate;
pub mod socket;

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::http::{Body, Handler, Peer, RequestBody};
use crate::metrics::{CacheFigures, Metrics};
use crate::retention::Retention;

/// Answers on the debug listener.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    retention: Retention,
    /// Where the metrics are, if anywhere.
    metrics_path: Option<String>,
}

impl Admin {
    pub fn new(metrics: Arc<Metrics>, retention: Retention, metrics_path: Option<String>) -> Self {
        Self {
            metrics,
            retention,
            metrics_path,
        }
    }

    /// What is counted elsewhere is copied when it is asked for.
    fn render(&self) -> String {
        let (usage, counts) = (self.retention.usage(), self.retention.counts());
        self.metrics.cache(&CacheFigures {
            bytes: usage.used,
            reserved_bytes: usage.reserved,
            limit_bytes: usage.limit,
            links: usage.entries as u64,
            blobs: usage.blobs as u64,
            delete_failures: counts.delete_failures,
            save_failures: counts.save_failures,
            full: counts.full,
            unreadable: counts.unreadable,
        });
        self.metrics.render()
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this page is only read\n".to_owned(),
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            path if self.metrics_path.as_deref() == Some(path) => {
                let mut response = text(StatusCode::OK, self.render());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                response
            }
            // The reference registry's path, and its answer when all is well.
            "/debug/health" => {
                let mut response = text(StatusCode::OK, "{}".to_owned());
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            _ => {
                let metrics = self
                    .metrics_path
                    .as_deref()
                    .map(|path| format!("{path} and "))
                    .unwrap_or_default();
                text(
                    StatusCode::NOT_FOUND,
                    format!("there is {metrics}/debug/health here\n"),
                )
            }
        }
    }
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Response<Body> {
        self.answer(request.method(), request.uri().path())
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::bytes(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::retention::Settings;
    use crate::store::MemoryStore;
    use crate::tasks::Tasks;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn the_pages() {
        let (store, clock) = (Arc::new(MemoryStore::new()), Clock::system());
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let retention = Retention::start(store, clock, Settings::unlimited(), &tasks, &stop);
        let metrics = Arc::new(Metrics::new());
        let admin = Admin::new(metrics, retention, Some("/metrics".to_owned()));
        for (method, path, status) in [
            (Method::GET, "/metrics", 200),
            (Method::HEAD, "/debug/health", 200),
            (Method::GET, "/", 404),
            (Method::POST, "/metrics", 405),
        ] {
            assert_eq!(
                admin.answer(&method, path).status().as_u16(),
                status,
                "{method} {path}"
            );
        }
    }
}
