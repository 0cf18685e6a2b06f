//! The table in `docs/errors.md`: how an upstream fails, and what the client, the log and the metrics get.
//! Each row is produced against a whole server, and each of its cells compared.

mod scenes;

use std::collections::BTreeSet;

use testkit::Authority;

use self::scenes::{CASES, Scene, Situation};
use crate::harness::{Answer, Mirror, digest, mirrored, passing};

const PAGE: &str = include_str!("../../docs/errors.md");
const TITLES: &str = "| the upstream | request | status | code | message | log | metric |";
const COLUMNS: usize = 7;
const NAME: &str = "hub";
/// Bytes of a blob that is verified before its first byte is sent, and of one that isn't.
const SMALL: usize = 1000;
const LARGE: usize = 2 << 20;

/// A row of the table.
struct Row {
    situation: &'static str,
    request: &'static str,
    /// With `Retry-After` and its value, where the answer has one; then whether the body is cut off.
    status: &'static str,
    code: &'static str,
    message: &'static str,
    log: &'static str,
    metric: &'static str,
}

fn table() -> Vec<Row> {
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(TITLES));
    let ruled = lines.by_ref().nth(1).unwrap();
    assert!(ruled.starts_with("|-"), "{ruled}");
    let cells = lines.take_while(|line| line.starts_with("| ")).map(|line| {
        let line = line.trim_matches('|').trim();
        let cells: Vec<&str> = line.split(" | ").map(str::trim).collect();
        <[&str; COLUMNS]>::try_from(cells).unwrap_or_else(|cells| panic!("{cells:?}"))
    });
    let rows = cells.map(|cells| {
        let [situation, request, status, code, message, log, metric] = cells;
        Row {
            situation,
            request,
            status,
            code,
            message,
            log,
            metric,
        }
    });
    rows.collect()
}

/// What a row's column of requests stands for: what is asked for, and the bytes of the blob.
fn requests(request: &str) -> Vec<(&'static str, usize)> {
    let (tag, digest, blob) = (("tag", 0), ("digest", 0), ("blob", SMALL));
    match request {
        "any" => vec![tag, digest, blob],
        "manifest" => vec![tag, digest],
        "tag" => vec![tag],
        "digest" => vec![digest],
        "blob" => vec![blob],
        "blob of 2 MiB" => vec![("blob", LARGE)],
        _ => panic!("no such request: {request}"),
    }
}

/// Whether a text is what a cell says; `…` in the cell stands for any text.
fn matches(cell: &str, text: &str) -> bool {
    let Some((first, rest)) = cell.split_once('…') else {
        return cell == text;
    };
    let after = text.strip_prefix(first);
    after.is_some_and(|text| {
        let mut ends = (0..=text.len()).filter_map(|at| text.get(at..));
        ends.any(|end| matches(rest, end))
    })
}

/// A log line as the table has it: level, message and error, without the URL before the error's text.
fn shown(line: &str) -> String {
    assert!(line.contains(&format!("upstream=\"{NAME}\"")), "{line}");
    let (level, rest) = line.trim_start().split_once(' ').unwrap();
    let (_target, rest) = rest.trim_start().split_once(": ").unwrap();
    let (message, fields) = rest.split_once('=').unwrap();
    let (message, _key) = message.rsplit_once(' ').unwrap();
    let (_, error) = fields.split_once(" error=").unwrap();
    let mut fields = [" instead=", " pause="].into_iter();
    let (error, _fields) = fields.find_map(|key| error.split_once(key)).unwrap();
    let error = match error.split_once(": ") {
        Some((url, rest)) if url.starts_with("http") => rest,
        _ => error,
    };
    format!("{level} {message}: {error}")
}

fn status(answer: &Answer) -> String {
    let retry_after = match answer.header("retry-after") {
        "" => String::new(),
        seconds => format!(", `Retry-After: {seconds}`"),
    };
    let cut = if answer.broken { ", cut off" } else { "" };
    format!("{}{retry_after}{cut}", answer.status)
}

/// The code and the message of an error, without what the message begins with.
fn told(answer: &Answer, prefix: &str) -> (String, String) {
    let message = &answer.json()["errors"][0]["message"];
    let message = message.as_str().unwrap();
    // It is for everybody who pulls: no address, and nothing that the upstream wrote.
    for secret in ["://", "127.0.0.1", "169.254", "script"] {
        assert!(!message.contains(secret), "{message}");
    }
    let reason = message.strip_prefix(prefix);
    let reason = reason.unwrap_or_else(|| panic!("{message} doesn't begin with {prefix}"));
    (format!("`{}`", answer.error().1), reason.to_owned())
}

/// The errors that were counted, and how often.
fn counted(mirror: &Mirror) -> String {
    let text = mirror.app.metrics().render();
    let lines = text.lines();
    let errors = lines.filter_map(|line| {
        let labels = line.strip_prefix("millpond_upstream_errors_total{")?;
        let (labels, count) = labels.split_once("} ")?;
        assert!(labels.contains(&format!("upstream=\"{NAME}\"")), "{line}");
        let (_, error) = labels.split_once("error=\"")?;
        let error = error.split('"').next()?;
        Some(format!("{count} `{error}`"))
    });
    or_dash(&errors.collect::<Vec<_>>(), ", ")
}

fn or_dash(texts: &[String], separator: &str) -> String {
    let nothing = || "—".to_owned();
    Some(texts.join(separator))
        .filter(|joined| !joined.is_empty())
        .unwrap_or_else(nothing)
}

/// What is wrong with the cells of a row, for one of its requests.
async fn differences(
    row: &Row,
    situation: &Situation,
    (asked, size): (&str, usize),
    trust: &str,
) -> Vec<String> {
    let scene = Scene::set(situation, size, trust).await;
    let image = scene.image.digest();
    let blob = digest(&scene.blob);
    let (of, what) = match asked {
        "tag" => ("manifests/1".to_owned(), "manifest 1".to_owned()),
        "digest" => (format!("manifests/{image}"), format!("manifest {image}")),
        _ => (format!("blobs/{blob}"), format!("blob {blob}")),
    };
    let path = format!("/v2/{NAME}/app/{of}");
    let answer = passing(scene.mirror.get(&path)).await;
    let (log, metric) = (scene.warnings.about(""), counted(&scene.mirror));
    let (code, message) = match answer.status {
        200 => ("—".to_owned(), "—".to_owned()),
        _ => told(&answer, &format!("{what} of {NAME}/app from {NAME}: ")),
    };
    if row.request == "any" {
        let head = passing(scene.mirror.head(&path)).await;
        assert_eq!(
            head.status, answer.status,
            "HEAD, {}, {asked}",
            row.situation
        );
    }
    let log: Vec<_> = log.iter().map(|line| shown(line)).collect();
    let log = or_dash(&log, "<br>");
    let cells = [
        ("status", row.status, status(&answer)),
        ("code", row.code, code),
        ("message", row.message, message),
        ("log", row.log, log),
        ("metric", row.metric, metric),
    ];
    let wrong = cells
        .into_iter()
        .filter(|(_, cell, text)| !matches(cell, text));
    let wrong = wrong.map(|(column, cell, text)| {
        let situation = row.situation;
        format!("{situation}, {asked} {size}, {column}:\n  table: {cell}\n  here:  {text}")
    });
    wrong.collect()
}

#[tokio::test(start_paused = true)]
async fn every_cell_of_the_table_is_true() {
    // Reading the system's certificates takes longer than all the rest.
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&authority, Authority::new("others").pem()).unwrap();
    let trust = format!("ca: {}, caonly: true", authority.path().display());
    let table = table();
    let mut wrong = Vec::new();
    for row in &table {
        let case = CASES.iter().find(|(name, _)| *name == row.situation);
        let (_, situation) = case.unwrap_or_else(|| panic!("no case for {}", row.situation));
        for request in requests(row.request) {
            wrong.extend(differences(row, situation, request, &trust).await);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rows: BTreeSet<_> = table.iter().map(|row| row.situation).collect();
    let cases: BTreeSet<_> = CASES.iter().map(|(name, _)| *name).collect();
    assert_eq!(rows, cases);
}

#[tokio::test]
async fn an_upstream_whose_name_is_an_address_is_not_named() {
    let (_up, m) = mirrored().await;
    let answer = m.get("/v2/app/manifests/1").await;
    answer.refused(404, "MANIFEST_UNKNOWN");
    let message = "manifest 1 of app: the upstream has no such thing; check the reference";
    assert_eq!(answer.json()["errors"][0]["message"], message);
}
