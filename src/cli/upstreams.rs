//! `millpond upstreams`: how the running server's upstreams answer.

use serde_json::json;

use super::operate::{Backend, with_backend};
use super::table::{self, Table};
use super::{Located, print, print_json};
use crate::admin::operate::Operation;
use crate::upstream::{AccountStatus, EndpointStatus};

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
            limits(endpoint),
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

/// `76 of 100 in 6h`, of several accounts each with its name.
fn limits(endpoint: &EndpointStatus) -> String {
    let accounts = &endpoint.limits;
    let limit = |account: &AccountStatus| {
        let left = account.limit.zip(account.remaining);
        let left = left.map(|(limit, remaining)| {
            let window = age(account.window.unwrap_or_default());
            format!("{remaining} of {limit} in {window}")
        });
        let paused = account.paused_for;
        let paused = paused.map(|pause| format!("429 for {}", age(pause)));
        let both: Vec<_> = left.into_iter().chain(paused).collect();
        let text = (!both.is_empty()).then(|| both.join(", "))?;
        Some(if accounts.len() > 1 {
            format!("{}: {text}", account.account)
        } else {
            text
        })
    };
    let month = endpoint.month_bytes.zip(endpoint.month_limit);
    let month = month.map(|(bytes, limit)| {
        format!(
            "{} of {} this month",
            table::bytes(bytes),
            table::bytes(limit)
        )
    });
    let known: Vec<_> = accounts.iter().filter_map(limit).chain(month).collect();
    if known.is_empty() {
        return NOTHING.to_owned();
    }
    known.join("; ")
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
            limits: vec![AccountStatus {
                account: "someone".to_owned(),
                limit: Some(100),
                remaining: Some(76),
                window: Some(21_600.0),
                paused_for: None,
            }],
            month_bytes: None,
            month_limit: None,
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
            limits: vec![
                AccountStatus {
                    limit: None,
                    remaining: None,
                    window: None,
                    paused_for: Some(40.0),
                    ..healthy.limits[0].clone()
                },
                AccountStatus {
                    account: "another".to_owned(),
                    ..healthy.limits[0].clone()
                },
            ],
            last_error: Some(LastError {
                ago: 7300.0,
                error: "can't connect".to_owned(),
            }),
            ..healthy.clone()
        };
        let alone = EndpointStatus {
            month_bytes: Some(3 << 30),
            month_limit: Some(10 << 40),
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
                "docker.io mirror:5000/hub closed 12ms 200ms 3 2, 3s to 3m 76 of 100 in 6h -",
                "docker.io registry-1.docker.io open for 4s - - 0 0 someone: 429 for 40s; another: 76 of 100 in 6h 2h ago: can't connect",
                "docker.io mirror:5000/hub - 12ms 200ms 3 2, 3s to 3m 76 of 100 in 6h; 3.0 GiB of 10.0 TiB this month -",
            ]
        );
    }
}
