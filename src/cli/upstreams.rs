//! `millpond upstreams`: how the running server's upstreams answer.

use serde_json::json;

use super::operate::{Backend, with_backend};
use super::table::Table;
use super::{Located, print, print_json};
use crate::admin::operate::Operation;
use crate::upstream::EndpointStatus;

/// What a cell says where there is nothing to say.
const NOTHING: &str = "-";

/// `millpond upstreams`
pub(super) fn upstreams(located: &Located, as_json: bool) -> anyhow::Result<()> {
    let run = async |backend: &mut Backend| backend.run(Operation::Upstreams).await;
    let endpoints: Vec<EndpointStatus> = with_backend(located, run)?;
    if as_json {
        return print_json(&json!({ "endpoints": endpoints }));
    }
    print(&table(&endpoints).to_string())
}

fn table(endpoints: &[EndpointStatus]) -> Table<9> {
    let mut table = Table::new([
        "UPSTREAM",
        "ENDPOINT",
        "CIRCUIT",
        "LATENCY",
        "P99",
        "STREAMS",
        "TOKENS",
        "LIMIT",
        "LAST ERROR",
    ]);
    for endpoint in endpoints {
        let circuit = endpoint.circuit.as_deref().unwrap_or(NOTHING);
        let circuit = match endpoint.retry_in {
            Some(retry_in) if retry_in > 0.0 => format!("{circuit} for {retry_in:.0}s"),
            _ => circuit.to_owned(),
        };
        let last_error = endpoint.last_error.as_ref();
        let last_error = last_error.map(|last| format!("{} ago: {}", age(last.ago), last.error));
        table.row([
            endpoint.upstream.clone(),
            endpoint.endpoint.clone(),
            circuit,
            milliseconds(endpoint.latency),
            milliseconds(endpoint.latency_p99),
            endpoint.streams.to_string(),
            tokens(endpoint),
            // Rate limits aren't read yet.
            NOTHING.to_owned(),
            last_error.unwrap_or_else(|| NOTHING.to_owned()),
        ]);
    }
    table
}

/// `3, 10s to 4m`
fn tokens(endpoint: &EndpointStatus) -> String {
    let tokens = &endpoint.tokens;
    match (tokens.youngest, tokens.oldest) {
        (Some(youngest), Some(oldest)) if tokens.count > 1 => {
            format!("{}, {} to {}", tokens.count, age(youngest), age(oldest))
        }
        (Some(age_of_one), _) => format!("1, {}", age(age_of_one)),
        _ => tokens.count.to_string(),
    }
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || NOTHING.to_owned(),
        |seconds| format!("{:.0}ms", seconds * 1000.0),
    )
}

/// In the largest unit that it has one of.
fn age(seconds: f64) -> String {
    let units = [(86_400.0, "d"), (3600.0, "h"), (60.0, "m")];
    let unit = units.iter().find(|(unit, _)| seconds >= *unit);
    let (unit, name) = unit.copied().unwrap_or((1.0, "s"));
    format!("{:.0}{name}", (seconds / unit).floor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{LastError, TokenAges};

    #[test]
    fn each_endpoint_has_a_line() {
        let healthy = EndpointStatus {
            upstream: "docker.io".to_owned(),
            endpoint: "mirror:5000/hub".to_owned(),
            circuit: Some("closed".to_owned()),
            retry_in: None,
            latency: Some(0.0124),
            latency_p99: Some(0.2),
            streams: 3,
            tokens: TokenAges {
                count: 2,
                youngest: Some(3.9),
                oldest: Some(200.0),
            },
            last_error: None,
        };
        let failing = EndpointStatus {
            endpoint: "registry-1.docker.io".to_owned(),
            circuit: Some("open".to_owned()),
            retry_in: Some(4.2),
            latency: None,
            latency_p99: None,
            streams: 0,
            tokens: TokenAges::default(),
            last_error: Some(LastError {
                ago: 7300.0,
                error: "can't connect".to_owned(),
            }),
            ..healthy.clone()
        };
        let alone = EndpointStatus {
            circuit: None,
            retry_in: None,
            ..healthy.clone()
        };
        let text = table(&[healthy, failing, alone]).to_string();
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "UPSTREAM ENDPOINT CIRCUIT LATENCY P99 STREAMS TOKENS LIMIT LAST ERROR",
                "docker.io mirror:5000/hub closed 12ms 200ms 3 2, 3s to 3m - -",
                "docker.io registry-1.docker.io open for 4s - - 0 0 - 2h ago: can't connect",
                "docker.io mirror:5000/hub - 12ms 200ms 3 2, 3s to 3m - -",
            ]
        );
    }
}
