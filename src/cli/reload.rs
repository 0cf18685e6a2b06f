//! `millpond reload`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::{Listing, load, print, print_json};
use crate::admin::client::Client;
use crate::admin::operate::Operation;
use crate::admin::reload::ReloadReport;
use crate::config::{Difference, Storage};
use crate::storage::Layout;

/// Longer than the server takes for its answer at most.
const PATIENCE: Duration = Duration::from_secs(150);

/// Has the running server read its configuration again, and prints what came of it. An error if
/// nothing was changed.
pub(super) fn reload(Listing { json, located }: &Listing) -> anyhow::Result<()> {
    // A broken file is told from here: the server would say the same.
    let config = load(located.config.as_deref())
        .context("nothing has changed")?
        .config;
    let Storage::Filesystem { root, .. } = &config.storage else {
        anyhow::bail!("a server with storage.inmemory has no admin socket; send it SIGHUP");
    };
    let socket = Layout::new(root).admin_socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let report = runtime.block_on(ask(&socket))?;
    if *json {
        print_json(&json!(report))?;
    } else {
        print(&text(&report))?;
    }
    let problems = report.problems.len();
    anyhow::ensure!(
        problems == 0,
        "nothing has changed: {}",
        report.problems.join("\n")
    );
    Ok(())
}

/// Has the server at an admin socket read its configuration again.
async fn ask(socket: &Path) -> anyhow::Result<ReloadReport> {
    let answer = async {
        let mut client = Client::connect(socket, &TaskTracker::new()).await.context(
            "no server answers at the data directory's admin socket; where the configuration names \
             another directory than the server uses, send the server SIGHUP",
        )?;
        anyhow::Ok(client.run(&Operation::Reload).await?)
    };
    let answer = timeout(PATIENCE, answer).await;
    let late = || format!("the server gives no answer within {} s", PATIENCE.as_secs());
    let report = serde_json::from_slice(&answer.with_context(late)??);
    report.context("the server's answer can't be read")
}

/// The lines for people.
fn text(report: &ReloadReport) -> String {
    let applied = report.applied.iter().map(|one| line("applied", one));
    let restart = report
        .restart
        .iter()
        .map(|one| line("needs a restart", one));
    let warnings = report.warnings.iter();
    let warnings = warnings.map(|warning| format!("warning: {warning}\n"));
    let text: String = applied.chain(restart).chain(warnings).collect();
    if text.is_empty() && report.problems.is_empty() {
        return "nothing differs\n".to_owned();
    }
    text
}

fn line(title: &str, Difference { key, before, after }: &Difference) -> String {
    if before.is_none() && after.is_none() {
        return format!("{title}: {key}\n");
    }
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(nothing)".to_owned());
    format!("{title}: {key}: {} -> {}\n", shown(before), shown(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _silent = tokio::net::UnixListener::bind(&path).unwrap();
        let error = ask(&path).await.unwrap_err();
        assert_eq!(error.to_string(), "the server gives no answer within 150 s");
    }

    #[test]
    fn each_key_has_a_line() {
        let difference = |key: &str, before: Option<&str>, after: Option<&str>| Difference {
            key: key.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let report = ReloadReport {
            problems: Vec::new(),
            applied: vec![
                difference("log.level", Some("info"), Some("debug")),
                difference("proxy.upstreams[a.b]: a secret", None, None),
            ],
            restart: vec![difference("http.debug.addr", None, Some(":5001"))],
            warnings: vec!["c.yml:3: odd".to_owned()],
        };
        let expected = "applied: log.level: info -> debug\n\
                        applied: proxy.upstreams[a.b]: a secret\n\
                        needs a restart: http.debug.addr: (nothing) -> :5001\n\
                        warning: c.yml:3: odd\n";
        assert_eq!(text(&report), expected);
        assert_eq!(text(&ReloadReport::default()), "nothing differs\n");
    }
}
