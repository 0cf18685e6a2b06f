//! What operators ask. Metrics and health are on a listener of their own (`http.debug.addr`), which
//! clients of the registry can't reach; listing and purging ([`operate`]) on a unix socket of the data
//! directory ([`socket`]).

pub mod health;
pub mod operate;
pub mod socket;

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::cache::Cache;
use crate::metrics::{CacheFigures, Metrics};
use crate::server::{Body, Handler, Peer, RequestBody};
use crate::tasks::Tasks;
use health::Health;

/// Answers on the debug listener.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    cache: Cache,
    tasks: Tasks,
    health: Health,
    /// Where the metrics are, if anywhere.
    metrics_path: Option<String>,
}

impl Admin {
    /// The metrics and the health of a server with this cache and these tasks.
    pub fn new(
        metrics: Arc<Metrics>,
        cache: Cache,
        tasks: Tasks,
        metrics_path: Option<String>,
    ) -> Self {
        let health = Health::new(cache.clone(), tasks.clone(), Arc::clone(&metrics));
        Self {
            metrics,
            cache,
            tasks,
            health,
            metrics_path,
        }
    }

    /// What is counted elsewhere is copied when it is asked for.
    async fn render(&self) -> String {
        // For the degraded conditions.
        self.health.check().await;
        self.metrics.task_panics(self.tasks.panics());
        let (usage, counts) = (self.cache.usage(), self.cache.counts());
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

    async fn answer(&self, method: &Method, path: &str) -> Response<Body> {
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
                let mut response = text(StatusCode::OK, self.render().await);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                response
            }
            // The reference registry's path, and its answer: the checks that fail, by name.
            "/debug/health" => {
                let failing = self.health.check().await;
                let status = if failing.is_empty() {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                let mut response = text(status, serde_json::json!(failing).to_string());
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
        self.answer(request.method(), request.uri().path()).await
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
    use crate::cache::CacheSettings;
    use crate::clock::Clock;
    use crate::storage::MemoryStore;
    use http_body_util::BodyExt as _;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn the_pages() {
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
        let metrics = Arc::new(Metrics::new());
        let path = Some("/metrics".to_owned());
        let admin = Admin::new(metrics, cache, tasks.clone(), path);
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
