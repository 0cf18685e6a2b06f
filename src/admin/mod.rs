//! What operators ask. Metrics and health are on listeners of their own (`http.debug.addr`, and those of
//! `http.listeners` that serve operators), which clients of the registry can't reach; listing and purging
//! ([`operate`]) on a unix socket of the data directory ([`socket`]).

pub mod health;
pub mod operate;
pub mod reload;
pub mod socket;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::metrics::CacheFigures;
use crate::server::{Body, Handler, Peer, RequestBody};
use health::Health;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on the debug listener.
#[derive(Debug)]
pub struct Admin {
    pub health: Health,
    /// Where the metrics are, if anywhere.
    pub metrics_path: Option<String>,
}

impl Admin {
    /// The metrics as text. Copies the figures that other modules count.
    async fn render(&self) -> String {
        let Health {
            cache,
            tasks,
            metrics,
            ..
        } = &self.health;
        // For the degraded conditions.
        self.health.check().await;
        metrics.task_panics(tasks.panics());
        metrics.long_polls(tasks.long_polls());
        let (usage, counts) = (cache.usage(), cache.counts());
        metrics.cache(&CacheFigures {
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
        metrics.render()
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            let text = "this page is only read\n".to_owned();
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        let metrics_path = self.metrics_path.as_deref();
        match path {
            path if metrics_path == Some(path) => {
                response(StatusCode::OK, METRICS, self.render().await)
            }
            // The reference registry's path, and its answer: the checks that fail, by name.
            "/debug/health" => {
                let failing = self.health.check().await;
                let status = if failing.is_empty() {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                response(status, JSON, serde_json::json!(failing).to_string())
            }
            _ => {
                let metrics = metrics_path.map(|path| format!("{path} and "));
                let metrics = metrics.unwrap_or_default();
                let text = format!("there is {metrics}/debug/health here\n");
                response(StatusCode::NOT_FOUND, TEXT, text)
            }
        }
    }
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Response<Body> {
        self.answer(request.method(), request.uri().path()).await
    }
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::bytes(body));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheSettings};
    use crate::clock::Clock;
    use crate::storage::MemoryStore;
    use crate::tasks::Tasks;
    use http_body_util::BodyExt as _;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn pages_have_their_status_and_health_names_a_failed_task() {
        let clock = Clock::system();
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let cache = Cache::start(
            Arc::new(MemoryStore::new()),
            Arc::default(),
            clock,
            CacheSettings::unlimited(),
            &tasks,
            &stop,
        );
        let admin = Admin {
            health: Health::new(cache, tasks.clone(), Arc::default()),
            metrics_path: Some("/metrics".to_owned()),
        };
        for (method, path, status) in [
            (Method::GET, "/metrics", 200),
            (Method::HEAD, "/debug/health", 200),
            (Method::GET, "/", 404),
            (Method::POST, "/metrics", 405),
        ] {
            assert_eq!(
                admin.answer(&method, path).await.status().as_u16(),
                status,
                "{method} {path}"
            );
        }
        tasks.spawn_required("listener", async { panic!("on purpose") });
        tasks.failed().await;
        let unwell = admin.answer(&Method::GET, "/debug/health").await;
        assert_eq!(unwell.status(), 503);
        assert_eq!(unwell.headers()[CONTENT_TYPE], "application/json");
        let body = unwell.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"task listener":"on purpose"}"#);
    }
}
