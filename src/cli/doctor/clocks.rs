//! This machine's clock, alone and beside a server's.

use std::time::{Duration, SystemTime};

use super::certificate::date;
use super::finding::Findings;
use crate::clock::Clock;

/// 2026-01-01: no clock that is right shows an earlier time.
const EARLIEST: Duration = Duration::from_hours(490_896);
/// Beyond it, tokens that live for a minute begin to fail.
const MAX_SKEW: Duration = Duration::from_secs(30);
/// Beyond it, tokens of the mirror and of registries are refused: they live for five minutes.
const FATAL_SKEW: Duration = Duration::from_mins(5);

const FIX: &str = "synchronize the clock (systemctl enable --now systemd-timesyncd, or chrony)";

/// Whether the clock shows a time that may be right.
pub(super) fn check(clock: Clock, found: &mut Findings) {
    let now = clock.wall();
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        found.fail("clock", format!("it is {}, in the past", date(now)), FIX);
    } else {
        let now = humantime::format_rfc3339_seconds(now);
        found.ok("clock", format!("it is {now}"));
    }
}

/// Compares the clock with the `Date` that `whose` server has just sent.
pub(super) fn compare(sent: Option<SystemTime>, clock: Clock, whose: &str, found: &mut Findings) {
    let Some(sent) = sent else { return };
    let now = clock.wall();
    let (skew, direction) = match sent.duration_since(now) {
        Ok(behind) => (behind, "behind"),
        Err(ahead) => (ahead.duration(), "ahead of"),
    };
    let shown = humantime::format_duration(Duration::from_secs(skew.as_secs()));
    let text = format!("this machine's clock is {shown} {direction} the {whose}'s");
    let fix = format!("{FIX} of whichever machine is wrong");
    if skew > FATAL_SKEW {
        found.fail("clock", text, fix);
    } else if skew > MAX_SKEW {
        found.warn("clock", text, fix);
    } else {
        found.ok(
            "clock",
            format!("this machine's clock agrees with the {whose}'s"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[tokio::test]
    async fn skew_is_judged_by_its_size() {
        let noon = SystemTime::UNIX_EPOCH + EARLIEST;
        let clock = Clock::starting_at(noon);
        let judged = |sent| {
            let mut found = Findings::about("it");
            compare(Some(sent), clock, "mirror", &mut found);
            found.into_list().remove(0)
        };
        assert_eq!(judged(noon + MAX_SKEW).status, Status::Ok);
        let behind = judged(noon + Duration::from_secs(101));
        assert_eq!(behind.status, Status::Warn);
        // Its own time has passed a little.
        assert!(behind.text.contains("behind the mirror's"), "{behind:?}");
        let ahead = judged(noon - Duration::from_hours(2));
        assert_eq!(ahead.status, Status::Fail);
        assert!(ahead.text.contains("2h ahead of"), "{ahead:?}");
        let mut found = Findings::about("clock");
        check(
            Clock::starting_at(noon - Duration::from_mins(1)),
            &mut found,
        );
        assert_eq!(found.into_list()[0].status, Status::Fail);
    }
}
