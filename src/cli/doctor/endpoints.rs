//! How the upstreams answer the running server: circuits, rate limits, tokens.

use super::finding::Findings;
use super::upstream::LOW;
use crate::upstream::{AccountStatus, EndpointStatus, TokenAges};

/// Adds what the server says of its endpoints.
pub(super) fn check(endpoints: &[EndpointStatus], found: &mut Findings) {
    for endpoint in endpoints {
        let name = format!("{} at {}", endpoint.upstream, endpoint.endpoint);
        circuit(&name, endpoint, found);
        for account in &endpoint.limits {
            rate_limit(&name, account, found);
        }
        month(&name, endpoint, found);
    }
}

fn circuit(name: &str, endpoint: &EndpointStatus, found: &mut Findings) {
    let last_error = endpoint.last_error.as_ref();
    match endpoint.circuit.as_deref() {
        None | Some("closed") => {
            let tokens = tokens(&endpoint.tokens);
            found.ok("endpoint", format!("{name} is asked{tokens}"));
        }
        Some(state) => {
            let error = last_error.map_or_else(String::new, |last| format!(": {}", last.error));
            let text = format!("the circuit of {name} is {state}{error}");
            let fix = "find out why this endpoint fails; the others are asked meanwhile";
            found.warn("endpoint", text, fix);
        }
    }
}

fn rate_limit(name: &str, account: &AccountStatus, found: &mut Findings) {
    let fix = "wait, or use an account with a higher limit or further ones (`accounts`)";
    if let Some(pause) = account.paused_for {
        let text = format!(
            "{name} answered 429 to the account {}: no such requests are sent to it for {pause:.0} s",
            account.account
        );
        found.warn("rate-limit", text, fix);
    }
    let (Some(limit), Some(remaining)) = (account.limit, account.remaining) else {
        return;
    };
    let text = format!(
        "{remaining} of {limit} pulls of the account {} are left at {name}",
        account.account
    );
    if remaining <= limit.saturating_mul(LOW) / 100 {
        found.warn("rate-limit", text, fix);
    } else {
        found.ok("rate-limit", text);
    }
}

fn month(name: &str, endpoint: &EndpointStatus, found: &mut Findings) {
    let (Some(bytes), Some(limit)) = (endpoint.month_bytes, endpoint.month_limit) else {
        return;
    };
    let text = format!("{bytes} of {limit} bytes of this month are used up at {name}");
    if u128::from(bytes) * 100 >= u128::from(limit) * u128::from(100 - LOW) {
        found.warn("rate-limit", text, "raise `ratelimit.monthly`, or wait");
    } else {
        found.ok("rate-limit", text);
    }
}

/// `; 2 tokens, 3 to 200 s old`
fn tokens(tokens: &TokenAges) -> String {
    match (tokens.youngest, tokens.oldest) {
        (Some(youngest), Some(oldest)) => format!(
            "; {} tokens, {youngest:.0} to {oldest:.0} s old",
            tokens.count
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::LastError;

    const EXPECTED: &str = "\
Ok: docker.io at registry-1.docker.io is asked; 2 tokens, 3 to 200 s old
Ok: 11 of 100 pulls of the account someone are left at docker.io at registry-1.docker.io
Ok: 8 of 1000 bytes of this month are used up at docker.io at registry-1.docker.io
Warn: the circuit of docker.io at mirror:5000 is open: can't connect
Warn: docker.io at mirror:5000 answered 429 to the account someone: no such requests are sent to it for 40 s
Warn: 10 of 100 pulls of the account someone are left at docker.io at mirror:5000
Warn: 901 of 1000 bytes of this month are used up at docker.io at mirror:5000
";

    #[test]
    fn open_circuits_and_used_up_limits_are_warned_of() {
        let account = |remaining, paused_for| AccountStatus {
            account: "someone".to_owned(),
            limit: Some(100),
            remaining: Some(remaining),
            window: Some(21_600.0),
            paused_for,
        };
        let healthy = EndpointStatus {
            upstream: "docker.io".to_owned(),
            endpoint: "registry-1.docker.io".to_owned(),
            circuit: None,
            retry_in: None,
            latency: None,
            latency_p99: None,
            streams: 0,
            tokens: TokenAges {
                count: 2,
                youngest: Some(3.2),
                oldest: Some(200.0),
            },
            limits: vec![account(11, None)],
            month_bytes: Some(8),
            month_limit: Some(1000),
            last_error: None,
        };
        let failing = EndpointStatus {
            endpoint: "mirror:5000".to_owned(),
            circuit: Some("open".to_owned()),
            limits: vec![account(10, Some(39.7))],
            month_bytes: Some(901),
            last_error: Some(LastError {
                ago: 1.0,
                error: "can't connect".to_owned(),
            }),
            ..healthy.clone()
        };
        let mut found = Findings::about("server");
        check(&[healthy, failing], &mut found);
        let lines = found.into_list().into_iter();
        let lines = lines.map(|finding| format!("{:?}: {}\n", finding.status, finding.text));
        assert_eq!(lines.collect::<String>(), EXPECTED);
    }
}
