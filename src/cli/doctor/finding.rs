//! What a check finds, as a line for people or as JSON.

use std::io::{self, Write};

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// It works, but not well, or not for long.
    Warn,
    /// Something doesn't work.
    Fail,
}

/// One thing that was found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// A short constant name of what was checked, such as `tls`.
    pub(super) check: &'static str,
    /// What it was checked of, such as `upstream ghcr.io`.
    pub(super) subject: String,
    pub(super) status: Status,
    /// What was found, in one line.
    #[serde(rename = "finding")]
    pub(super) text: String,
    /// What to do. None where all is well.
    pub(super) fix: Option<String>,
}

/// The findings about one subject, in the order of the checks.
#[derive(Debug)]
pub(super) struct Findings {
    subject: String,
    list: Vec<Finding>,
}

impl Findings {
    pub(super) fn about(subject: impl Into<String>) -> Self {
        Self {
            subject: one_line(&subject.into()),
            list: Vec::new(),
        }
    }

    pub(super) fn ok(&mut self, check: &'static str, finding: impl Into<String>) {
        self.add(check, Status::Ok, &finding.into(), None);
    }

    pub(super) fn warn(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(check, Status::Warn, &finding.into(), Some(&fix.into()));
    }

    pub(super) fn fail(
        &mut self,
        check: &'static str,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(check, Status::Fail, &finding.into(), Some(&fix.into()));
    }

    fn add(&mut self, check: &'static str, status: Status, text: &str, fix: Option<&str>) {
        self.list.push(Finding {
            check,
            subject: self.subject.clone(),
            status,
            text: one_line(text),
            fix: fix.map(one_line),
        });
    }

    pub(super) fn into_list(self) -> Vec<Finding> {
        self.list
    }
}

/// Parts of a finding may come from the network: no control character of theirs reaches a terminal.
fn one_line(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(printable).collect()
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text {
        colours: bool,
    },
    /// An object a line.
    Json,
}

/// Prints findings as they come, and remembers the worst.
pub(super) struct Report<W> {
    out: W,
    format: Format,
    worst: Status,
}

impl<W: Write> Report<W> {
    pub(super) fn new(out: W, format: Format) -> Self {
        Self {
            out,
            format,
            worst: Status::Ok,
        }
    }

    pub(super) fn print(&mut self, finding: &Finding) -> io::Result<()> {
        self.worst = self.worst.max(finding.status);
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.out, finding)?;
                writeln!(self.out)?;
            }
            Format::Text { colours } => {
                let status = shown(finding.status, colours);
                let Finding { subject, text, .. } = finding;
                write!(self.out, "{status}  {subject}: {text}")?;
                if let Some(fix) = &finding.fix {
                    write!(self.out, ". Fix: {fix}")?;
                }
                writeln!(self.out)?;
            }
        }
        // Whoever waits for a slow check sees the others.
        self.out.flush()
    }

    pub(super) fn worst(&self) -> Status {
        self.worst
    }
}

/// Four characters, so that the subjects are aligned.
fn shown(status: Status, colours: bool) -> String {
    let (colour, text) = match status {
        Status::Ok => ("32", "ok  "),
        Status::Warn => ("33", "warn"),
        Status::Fail => ("31", "fail"),
    };
    if colours {
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format) -> (String, Status) {
        let mut findings = Findings::about("upstream a");
        findings.ok("dns", "resolves");
        findings.warn("api", "answers\n\u{1b}[31mslowly", "wait");
        let mut report = Report::new(Vec::new(), format);
        for finding in findings.into_list() {
            report.print(&finding).unwrap();
        }
        let text = String::from_utf8(report.out.clone()).unwrap();
        (text, report.worst())
    }

    #[test]
    fn a_finding_takes_one_line() {
        let (text, worst) = printed(Format::Text { colours: false });
        assert_eq!(
            text,
            "ok    upstream a: resolves\n\
             warn  upstream a: answers  [31mslowly. Fix: wait\n"
        );
        assert_eq!(worst, Status::Warn);
        let (text, _) = printed(Format::Text { colours: true });
        assert!(
            text.starts_with("\u{1b}[32mok  \u{1b}[0m  upstream"),
            "{text:?}"
        );
    }

    #[test]
    fn json_has_an_object_a_line() {
        let (text, _) = printed(Format::Json);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0],
            serde_json::json!({
                "check": "dns", "subject": "upstream a", "status": "ok", "finding": "resolves",
                "fix": null,
            })
        );
        assert_eq!(lines[1]["status"], "warn");
    }
}
