//! What operators ask: metrics and health, on a listener of its own (`http.debug.addr`), so that
//! clients of the registry can't reach it.

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::http::{Body, Handler};
use crate::metrics::Metrics;

/// Answers on the debug listener.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    /// Where the metrics are, if anywhere.
    metrics_path: Option<String>,
}

impl Admin {
    pub fn new(metrics: Arc<Metrics>, metrics_path: Option<String>) -> Self {
        Self {
            metrics,
            metrics_path,
        }
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
                let mut response = text(StatusCode::OK, self.metrics.render());
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
    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        _peer: Arc<str>,
    ) -> Response<Body> {
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

    #[test]
    fn the_pages() {
        let admin = Admin::new(Arc::new(Metrics::new()), Some("/metrics".to_owned()));
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
