//! What operators ask. Metrics and health are on listeners of their own (`http.debug.addr`, and those of
//! `http.listeners` that serve operators), which clients of the registry can't reach; listing and purging
//! ([`operate`]) on a unix socket of the data directory ([`socket`]).

pub mod ask;
pub mod client;
pub mod content;
pub mod health;
pub mod operate;
pub mod reload;
pub mod socket;
pub mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use http::{Method, Request, Response, StatusCode};
use tokio::time::timeout;

use crate::error_chain::on_one_line;
use crate::metrics::{CacheFigures, Format};
use crate::server::{Body, Handler, Peer, RequestBody};
use health::Health;
use operate::UpstreamList;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// How long a page of metrics waits for the disk. Prometheus waits for 10 s by default.
const SCRAPE_TIME: Duration = Duration::from_secs(1);

/// Answers on the debug listener.
#[derive(Debug)]
pub struct Admin {
    pub health: Health,
    pub upstreams: UpstreamList,
    /// Where the metrics are, if anywhere.
    pub metrics_path: Option<String>,
}

impl Admin {
    /// The metrics as text. Copies the figures that other modules count.
    async fn render(&self, format: Format) -> Response<Body> {
        let Health {
            cache,
            tasks,
            metrics,
            ..
        } = &self.health;
        // Refreshes the degraded conditions and the free space. If the disk takes longer, the page shows the
        // values of the check before: a disk that hangs mustn't hold up the other figures.
        let _late = timeout(SCRAPE_TIME, self.health.check()).await;
        metrics.task_panics(tasks.panics());
        metrics.long_polls(tasks.long_polls());
        let (usage, counts) = (cache.usage(), cache.counts());
        metrics.cache(&CacheFigures {
            bytes: usage.used,
            reserved_bytes: usage.reserved,
            staging_bytes: usage.staged,
            limit_bytes: usage.limit,
            links: usage.entries as u64,
            expiring_links: usage.expiring as u64,
            delete_queue: usage.deleting as u64,
            blobs: usage.blobs as u64,
            delete_failures: counts.delete_failures,
            save_failures: counts.save_failures,
            full: counts.full,
            unreadable: counts.unreadable,
            lost: cache.lost(0).1 as u64,
        });
        let metrics = Arc::clone(metrics);
        let upstreams = self.upstreams.read().clone();
        let render = move || {
            metrics.tokens(upstreams.iter().flat_map(|upstream| upstream.token_ages()));
            metrics.render_as(format)
        };
        let rendered = tokio::task::spawn_blocking(render).await;
        let mut response = match rendered {
            Ok(text) => response(StatusCode::OK, format.content_type(), text),
            Err(panicked) => {
                tracing::error!(error = %on_one_line(&panicked), "the metrics can't be rendered");
                let text = "the metrics can't be rendered; see the log\n";
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
            }
        };
        response.headers_mut().insert(VARY, ACCEPT.into());
        response
    }

    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            let text = "this page is only read\n".to_owned();
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        let metrics_path = self.metrics_path.as_deref();
        match path {
            path if metrics_path == Some(path) => self.render(Format::accepted(headers)).await,
            // The reference registry's path, and its answer: the checks that fail, by name.
            "/debug/health" => {
                let failing = self.health.check().await;
                checked(failing.is_empty(), &serde_json::json!(failing))
            }
            // That it answers is all.
            "/healthz" => response(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => {
                let readiness = self.health.readiness().await;
                checked(readiness.ready, &serde_json::json!(readiness))
            }
            _ => {
                let metrics = metrics_path.map(|path| format!("{path}, "));
                let metrics = metrics.unwrap_or_default();
                let text = format!("there is {metrics}/debug/health, /healthz and /readyz here\n");
                response(StatusCode::NOT_FOUND, TEXT, text)
            }
        }
    }
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Response<Body> {
        let (method, path) = (request.method(), request.uri().path());
        self.answer(method, path, request.headers()).await
    }
}

/// The result of checks.
fn checked(is_fine: bool, document: &serde_json::Value) -> Response<Body> {
    let status = if is_fine {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    response(status, JSON, document.to_string())
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
    use crate::health::Availability;
    use crate::storage::faulty::Operation;
    use crate::storage::{FaultyStore, MemoryStore, Store};
    use crate::tasks::Tasks;
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    fn admin(store: Arc<dyn Store>, tasks: &Tasks, availability: Availability) -> Admin {
        let cache = Cache::start(
            store,
            Arc::default(),
            Clock::system(),
            CacheSettings::unlimited(),
            tasks,
            &CancellationToken::new(),
        );
        Admin {
            health: Health::new(cache, tasks.clone(), Arc::default(), availability),
            upstreams: UpstreamList::default(),
            metrics_path: Some("/metrics".to_owned()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_does_not_hold_up_the_metrics() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let admin = admin(
            Arc::clone(&store) as _,
            &Tasks::new(),
            Availability::default(),
        );
        let stalled = store.stall(Operation::Check, 1);
        let none = HeaderMap::new();
        for _ in 0..3 {
            let began = Instant::now();
            let page = admin.answer(&Method::GET, "/metrics", &none).await;
            assert_eq!(page.status(), 200);
            assert!(began.elapsed() <= SCRAPE_TIME, "{:?}", began.elapsed());
        }
        stalled.release();
    }

    #[tokio::test]
    async fn pages_have_their_status_and_health_names_a_failed_task() {
        let (tasks, availability) = (Tasks::new(), Availability::default());
        let admin = admin(Arc::new(MemoryStore::new()), &tasks, availability.clone());
        let none = HeaderMap::new();
        for (method, path, status) in [
            (Method::GET, "/metrics", 200),
            (Method::HEAD, "/debug/health", 200),
            (Method::GET, "/healthz", 200),
            (Method::GET, "/readyz", 200),
            (Method::GET, "/", 404),
            (Method::POST, "/metrics", 405),
        ] {
            assert_eq!(
                admin.answer(&method, path, &none).await.status().as_u16(),
                status,
                "{method} {path}"
            );
        }
        tasks.spawn_required("listener", async { panic!("on purpose") });
        tasks.failed().await;
        let unwell = admin.answer(&Method::GET, "/debug/health", &none).await;
        assert_eq!(unwell.status(), 503);
        assert_eq!(unwell.headers()[CONTENT_TYPE], "application/json");
        let body = unwell.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"task listener":"on purpose"}"#);

        availability.stop();
        assert_eq!(
            admin
                .answer(&Method::GET, "/healthz", &HeaderMap::new())
                .await
                .status(),
            200
        );
        let stopping = admin
            .answer(&Method::GET, "/readyz", &HeaderMap::new())
            .await;
        assert_eq!(stopping.status(), 503);
        let body = stopping.into_body().collect().await.unwrap().to_bytes();
        let parts = r#"{"index":{"ok":true},"server":{"error":"it is stopping","ok":false},"store":{"ok":true}}"#;
        assert_eq!(body, format!(r#"{{"checks":{parts},"ready":false}}"#));
    }
}
