//! What the kernel says about processes and the machine (proc(5)), and children that never outlive
//! the run.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde::de::DeserializeOwned;

use super::{MIB, times};

/// The longest line or report taken from a child, in bytes.
const MAX_OUTPUT: u64 = 4 << 20;
/// How often a waiting loop looks again.
const POLL: Duration = Duration::from_millis(20);

/// Another process of the run; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Kept open: a role of this binary ends when its standard input does.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `command` with nothing to read but an open pipe.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            _stdin: stdin,
        })
    }

    /// Starts this very binary with these arguments and more variables, its standard output piped back.
    pub(crate) fn spawn_self(args: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).envs(variables.iter().copied());
        Self::spawn(command.stdout(Stdio::piped()))
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The same, for the kernel.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Reads one line of JSON from the child's standard output.
    pub(crate) fn read_json_line<T: DeserializeOwned>(&mut self) -> Result<T> {
        let stdout = self
            .child
            .stdout
            .as_mut()
            .context("standard output isn't piped")?;
        let mut line = String::new();
        BufReader::with_capacity(1, Read::by_ref(stdout))
            .take(MAX_OUTPUT)
            .read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a child said {line:?}"))
    }

    /// Waits for a child that ends by itself, calling `sample` now and then, and parses its output.
    pub(crate) fn finish<T: DeserializeOwned>(
        mut self,
        limit: Duration,
        mut sample: impl FnMut() -> Result<()>,
    ) -> Result<T> {
        let stdout = self
            .child
            .stdout
            .take()
            .context("standard output isn't piped")?;
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout
                .take(MAX_OUTPUT)
                .read_to_string(&mut text)
                .map(|_| text)
        });
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                started.elapsed() < limit,
                "a child ran for more than {limit:?}"
            );
            sample()?;
            thread::sleep(POLL);
        };
        ensure!(status.success(), "a child failed: {status}");
        let Ok(text) = reader.join() else {
            bail!("the reader of a child's output panicked")
        };
        Ok(serde_json::from_str(&text?)?)
    }

    /// Whether the process has ended.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already, and then there is nothing left to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// User and system CPU seconds of all threads of a process so far, the ended ones included, and of those
/// of its children that have ended.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    ticks_to_seconds(stat(pid)?.split(' ').skip(11).take(4))
}

/// User and system CPU seconds of the calling thread so far.
pub(crate) fn thread_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("an unknown format")?;
    ticks_to_seconds(fields.split(' ').skip(11).take(2))
}

/// CPU seconds of this process's children that have ended.
pub(crate) fn ended_children_seconds() -> Result<f64> {
    ticks_to_seconds(stat(std::process::id())?.split(' ').skip(13).take(2))
}

/// Processes of a parent.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |pid: &u32| {
        stat(*pid).is_ok_and(|stat| stat.split(' ').nth(1) == Some(&parent.to_string()))
    };
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}

/// `/proc/PID/stat` after the second field: the command in parentheses, which may hold spaces.
fn stat(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("stat without a command")?;
    Ok(rest.to_owned())
}

/// CPU seconds of the whole machine so far that weren't idle, waiting or stolen.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let fields = line.split_whitespace().skip(1).enumerate();
    ticks_to_seconds(
        fields
            .filter(|(at, _)| matches!(at, 0..=2 | 5 | 6))
            .map(|(_, field)| field),
    )
}

fn ticks_to_seconds<'a>(fields: impl Iterator<Item = &'a str>) -> Result<f64> {
    let mut ticks = 0_u64;
    for field in fields {
        ticks += field.parse::<u64>()?;
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A size field of `/proc/PID/status` (`VmHWM`: the peak of resident memory), in MiB.
pub(crate) fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("no {field} in status"))?;
    let kibibytes: f64 = value.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}

/// What the kernel holds in TCP socket buffers on the whole machine, in MiB.
pub(crate) fn tcp_buffer_mib() -> Result<f64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let line = text
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .context("no TCP in sockstat")?;
    let pages: u64 = line.rsplit(' ').next().context("no TCP memory")?.parse()?;
    Ok(times(pages * rustix::param::page_size() as u64, MIB))
}

/// How many cores this run may use.
pub(crate) fn cores() -> u32 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// One line that names the machine, and the file system under `data`.
pub(crate) fn describe_machine(data: &Path) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let data = fs::canonicalize(data)?;
    let kind = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter_map(|fields| Some((*fields.get(1)?, *fields.get(2)?)))
        .filter(|(mount, _)| data.starts_with(mount))
        .max_by_key(|(mount, _)| mount.len())
        .map_or("an unknown file system", |(_, kind)| kind);
    Ok(format!(
        "Machine: {} cores of {model}, Linux {}, data on {kind}. {}",
        cores(),
        kernel.trim(),
        describe_load()?,
    ))
}

/// How busy the machine is: the run's own work counts too.
pub(crate) fn describe_load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "Load average now: {}.",
        load.split(' ').next().unwrap_or("unknown")
    ))
}
