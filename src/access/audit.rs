//! The audit log: a JSON object on each line for each refusal, failed authentication, push, deletion and
//! change of the deny list. Nothing is lost silently: lines that the disk didn't take are counted, reported in the log,
//! and named by a line of the audit log once it can be written again.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::audit_file::AuditFile;
use super::{Denied, Resource};
use crate::auth::{AuthFailure, AuthFailureLog, Caller};
use crate::clock::Clock;
use crate::config::{self, PERMISSIONS, Permission};
use crate::line_writer::LineWriter;
use crate::metrics::Metrics;
use crate::telemetry;

/// How long the exit of the process waits for the last lines.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    Refused,
    AuthenticationFailed,
    Pushed,
    Deleted,
    Denied,
    DenialRemoved,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: AuditEvent,
    #[serde(flatten)]
    caller: Option<CallerFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The id of the client's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
}

impl Line<'_> {
    fn new(time: String, event: AuditEvent) -> Self {
        Self {
            time,
            event,
            caller: None,
            action: None,
            upstream: None,
            repository: None,
            reference: None,
            rule: None,
            reason: None,
            request: telemetry::with_current(|request| request.id().as_str().to_owned()),
        }
    }
}

#[derive(Serialize)]
struct CallerFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous: Option<bool>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
}

impl<'a> CallerFields<'a> {
    fn new(caller: &'a Caller) -> Self {
        let user = caller.user.as_deref();
        Self {
            user: user.map(|user| user.name.as_str()),
            anonymous: Some(user.is_none()),
            groups: user.map_or(&[], |user| &user.groups),
            address: caller.address,
        }
    }
}

/// The audit log; nothing where none is configured.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    to: Option<(Arc<LineWriter>, Clock)>,
}

impl Audit {
    /// Starts the log's thread. An error where the file can't be opened: a server that should log who
    /// is refused doesn't start without.
    pub fn start(to: &config::Audit, clock: Clock, metrics: &Metrics) -> io::Result<Self> {
        let notice = Box::new(move |lost: u64| {
            tracing::error!(lost, "lines of the audit log are lost");
            let time = humantime::format_rfc3339_millis(clock.wall());
            format!("{{\"time\":\"{time}\",\"event\":\"lost\",\"lines\":{lost}}}\n")
        });
        let writer = match to {
            config::Audit::Stderr => LineWriter::start(io::stderr(), notice),
            config::Audit::File(path) => LineWriter::start(AuditFile::open(path)?, notice),
        }?;
        writer.count_into(metrics.audit_lines_lost());
        Ok(Self {
            to: Some((writer, clock)),
        })
    }

    /// A caller may not do something.
    pub(super) fn refused(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
        denied: &Denied,
    ) {
        self.of_caller(
            AuditEvent::Refused,
            caller,
            resource,
            permission,
            denied.rule(),
        );
    }

    /// A caller gets no catalog.
    pub(super) fn catalog_refused(&self, caller: &Caller) {
        self.write(|time| Line {
            caller: Some(CallerFields::new(caller)),
            action: Some("catalog"),
            ..Line::new(time, AuditEvent::Refused)
        });
    }

    /// A caller has written or removed something.
    pub fn done(
        &self,
        event: AuditEvent,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) {
        self.of_caller(event, caller, resource, permission, None);
    }

    fn of_caller(
        &self,
        event: AuditEvent,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
        rule: Option<&str>,
    ) {
        self.write(|time| Line {
            caller: Some(CallerFields::new(caller)),
            action: Some(name(permission)),
            upstream: Some(resource.upstream),
            repository: Some(resource.repository.as_str()),
            reference: resource.reference.map(ToString::to_string),
            rule,
            ..Line::new(time, event)
        });
    }

    /// An operator has changed the deny list.
    pub(super) fn list_changed(&self, event: AuditEvent, entry: &super::DeniedEntry) {
        self.write(|time| Line {
            reference: Some(entry.reference.clone()),
            reason: entry.reason.as_deref(),
            ..Line::new(time, event)
        });
    }

    fn write<'a>(&self, line: impl FnOnce(String) -> Line<'a>) {
        let Some((writer, clock)) = &self.to else {
            return;
        };
        let time = humantime::format_rfc3339_millis(clock.wall()).to_string();
        match serde_json::to_vec(&line(time)) {
            Ok(mut text) => {
                text.push(b'\n');
                writer.line(&text);
            }
            Err(error) => {
                let error = crate::error_chain::on_one_line(&error);
                tracing::error!(error, "a line of the audit log is lost");
            }
        }
    }

    /// Writes the lines that wait, for a bounded time.
    pub async fn flush(&self) {
        if let Some((writer, _)) = self.to.clone() {
            let flushed = tokio::task::spawn_blocking(move || writer.flush(FLUSH_TIME)).await;
            if !matches!(flushed, Ok(true)) {
                tracing::error!("the last lines of the audit log may be lost");
            }
        }
    }
}

impl AuthFailureLog for Audit {
    fn failed(&self, failure: &AuthFailure<'_>) {
        let caller = CallerFields {
            user: failure.user,
            anonymous: None,
            groups: &[],
            address: failure.address,
        };
        self.write(|time| Line {
            caller: Some(caller),
            reason: Some(failure.reason),
            ..Line::new(time, AuditEvent::AuthenticationFailed)
        });
    }
}

pub(super) fn name(permission: Permission) -> &'static str {
    let mut names = PERMISSIONS.iter();
    let found = names.find(|(_, known)| *known == permission);
    found.map_or("", |(name, _)| name)
}
