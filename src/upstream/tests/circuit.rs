use std::time::Duration;

use tokio::time::{Instant, advance};

use super::super::circuit::{
    Change, Circuit, FAILURES, FIRST_PAUSE, MAX_PAUSE, PROBE_TIME, Pass, Trouble, View,
};

/// Jitter that changes nothing.
const EVEN: f64 = 0.5;
const TICK: Duration = Duration::from_millis(1);

fn admit(circuit: &Circuit) -> Option<Pass> {
    circuit.admit(Instant::now(), false)
}

fn fail(circuit: &Circuit, pass: Pass) -> Option<Change> {
    circuit.failed(pass, Trouble::Failed, Instant::now(), EVEN)
}

/// A circuit that has just opened for the first time.
fn opened() -> Circuit {
    let circuit = Circuit::new();
    for n in 1..=FAILURES {
        let change = fail(&circuit, admit(&circuit).unwrap());
        let expected = (n == FAILURES).then_some(Change::Opened(FIRST_PAUSE));
        assert_eq!(change, expected, "{n}");
    }
    circuit
}

#[tokio::test(start_paused = true)]
async fn consecutive_failures_open_it_and_a_success_between_them_does_not() {
    let circuit = Circuit::new();
    for _ in 0..10 {
        for _ in 1..FAILURES {
            assert_eq!(fail(&circuit, admit(&circuit).unwrap()), None);
        }
        assert_eq!(circuit.succeeded(admit(&circuit).unwrap()), None);
    }
    assert_eq!(circuit.view(), View::Closed);
    let circuit = opened();
    assert_eq!(circuit.view(), View::Open(Instant::now() + FIRST_PAUSE));
    assert_eq!(admit(&circuit), None);
}

#[tokio::test(start_paused = true)]
async fn one_probe_is_sent_after_the_pause_and_its_success_closes_the_circuit() {
    let circuit = opened();
    advance(FIRST_PAUSE.saturating_sub(TICK)).await;
    assert_eq!(admit(&circuit), None);
    advance(TICK).await;
    let probe = admit(&circuit).unwrap();
    assert_eq!(circuit.view(), View::HalfOpen);
    assert_eq!(admit(&circuit), None, "one probe at a time");
    assert_eq!(circuit.succeeded(probe), Some(Change::Closed));
    assert_eq!(circuit.view(), View::Closed);
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_a_limit_and_begin_anew_once_it_was_closed() {
    let circuit = opened();
    let mut pause = FIRST_PAUSE;
    for _ in 0..10 {
        advance(pause).await;
        pause = (2 * pause).min(MAX_PAUSE);
        let change = fail(&circuit, admit(&circuit).unwrap());
        assert_eq!(change, Some(Change::Opened(pause)));
    }
    assert_eq!(pause, MAX_PAUSE);
    advance(pause).await;
    circuit.succeeded(admit(&circuit).unwrap());
    for _ in 1..FAILURES {
        fail(&circuit, admit(&circuit).unwrap());
    }
    let change = fail(&circuit, admit(&circuit).unwrap());
    assert_eq!(change, Some(Change::Opened(FIRST_PAUSE)));
}

#[tokio::test(start_paused = true)]
async fn jitter_changes_a_pause_by_a_quarter_at_most() {
    for (jitter, factor) in [
        (0.0, 0.75),
        (0.5, 1.0),
        (1.0, 1.25),
        (7.0, 1.25),
        (-1.0, 0.75),
    ] {
        let circuit = Circuit::new();
        let trouble = Trouble::PushedBack(None);
        let change = circuit.failed(admit(&circuit).unwrap(), trouble, Instant::now(), jitter);
        assert_eq!(change, Some(Change::Opened(FIRST_PAUSE.mul_f64(factor))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_opens_it_at_once_for_its_retry_after_within_bounds() {
    for (retry_after, pause) in [(None, 5), (Some(1), 5), (Some(20), 20), (Some(3600), 60)] {
        let circuit = Circuit::new();
        let trouble = Trouble::PushedBack(retry_after.map(Duration::from_secs));
        let change = circuit.failed(admit(&circuit).unwrap(), trouble, Instant::now(), EVEN);
        assert_eq!(change, Some(Change::Opened(Duration::from_secs(pause))));
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_other_endpoint_a_retry_after_is_waited_for_to_its_end() {
    const LONGEST: Duration = Duration::from_hours(1);
    for (retry_after, least) in [(0, 1), (1, 1), (100, 100), (3600, 3600), (7200, 3600)] {
        for jitter in [0.0, 1.0] {
            let circuit = Circuit::honouring(LONGEST);
            let trouble = Trouble::PushedBack(Some(Duration::from_secs(retry_after)));
            let pass = admit(&circuit).unwrap();
            let change = circuit.failed(pass, trouble, Instant::now(), jitter);
            let pause = Duration::from_secs(least);
            assert_eq!(change, Some(Change::Opened(pause)));
        }
    }
    // One who always says 1 s is asked less and less often.
    let circuit = Circuit::honouring(LONGEST);
    for pause in [1, 10, 20, 40, 60, 60] {
        let trouble = Trouble::PushedBack(Some(Duration::from_secs(1)));
        let pass = circuit.admit(Instant::now(), false).unwrap();
        let change = circuit.failed(pass, trouble, Instant::now(), EVEN);
        let Some(Change::Opened(opened)) = change else {
            panic!("{change:?}");
        };
        assert_eq!(opened.as_secs(), pause);
        advance(opened).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_requests_from_before_change_nothing() {
    let circuit = Circuit::new();
    let (late_failure, late_success) = (admit(&circuit).unwrap(), admit(&circuit).unwrap());
    for _ in 0..FAILURES {
        fail(&circuit, admit(&circuit).unwrap());
    }
    let open = circuit.view();
    assert_eq!(circuit.succeeded(late_success), None);
    assert_eq!(fail(&circuit, late_failure), None);
    assert_eq!(circuit.view(), open);
    advance(FIRST_PAUSE).await;
    let probe = admit(&circuit).unwrap();
    assert_eq!(fail(&circuit, late_failure), None);
    assert_eq!(circuit.succeeded(probe), Some(Change::Closed));
    for _ in 0..FAILURES {
        assert_eq!(fail(&circuit, late_failure), None);
    }
    assert_eq!(circuit.view(), View::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_or_endless_probe_lets_the_next_request_probe() {
    let circuit = opened();
    advance(FIRST_PAUSE).await;
    let abandoned = admit(&circuit).unwrap();
    circuit.abandoned(abandoned, Instant::now());
    let endless = admit(&circuit).unwrap();
    advance(PROBE_TIME.saturating_sub(TICK)).await;
    assert_eq!(admit(&circuit), None);
    advance(TICK).await;
    let probe = admit(&circuit).unwrap();
    assert_eq!(fail(&circuit, endless), None);
    circuit.abandoned(endless, Instant::now());
    assert_eq!(circuit.view(), View::HalfOpen);
    assert_eq!(circuit.succeeded(probe), Some(Change::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_forced_request_is_the_probe_if_there_is_none() {
    let circuit = opened();
    let now = Instant::now();
    let probe = circuit.admit(now, true).unwrap();
    assert_eq!(circuit.view(), View::HalfOpen);
    // Beside a probe, it is sent and doesn't count.
    let other = circuit.admit(now, true).unwrap();
    assert_eq!(circuit.succeeded(other), None);
    assert_eq!(fail(&circuit, other), None);
    assert_eq!(circuit.view(), View::HalfOpen);
    assert_eq!(circuit.succeeded(probe), Some(Change::Closed));
}
