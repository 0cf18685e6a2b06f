//! The load generator: a process of its own with one thread and epoll(7), so that it takes little
//! from the servers it measures, and what it takes is known. Bodies of some size are discarded
//! inside the kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::Timespec;
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::Role;
use super::proc::{Process, cpu_seconds};
use super::wire::header;

/// Bytes taken per recv(2): of a head and the body after it, and of a body that is discarded.
const ROOM: usize = 1 << 20;
/// Bytes of the first read of an answer: a head and a small body.
const HEAD_ROOM: usize = 16 * 1024;
/// What a slow client takes at first, then in each interval, in bytes.
const GULP: usize = 256 * 1024;
const TRICKLE: usize = 16 * 1024;
const TRICKLE_EVERY: Duration = Duration::from_millis(100);
/// Addresses of this machine that new connections come from.
const SOURCES: usize = 200;
/// The longest time without an event.
const SILENCE: Timespec = Timespec {
    tv_sec: 120,
    tv_nsec: 0,
};
/// The longest that a run may take.
const LIMIT: Duration = Duration::from_mins(10);

/// What is asked for, and how often.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) addr: SocketAddr,
    /// What to ask for; connection n starts with path n and goes round.
    pub(crate) paths: Vec<String>,
    /// GET or HEAD.
    pub(crate) method: String,
    /// Connections, each with one request under way.
    pub(crate) connections: usize,
    pub(crate) pattern: Pattern,
    /// Opens a new connection for each request.
    pub(crate) fresh: bool,
}

/// How often each connection asks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// Until it has had so many answers.
    Answers(u64),
    /// One answer after another for so long.
    Lasting(Duration),
    /// Once, reads slowly, and closes the connection after so long.
    Slow(Duration),
}

/// What the load generator saw. Times in seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Whole answers.
    pub(crate) requests: u64,
    /// Body bytes, of answers under way at the end, too.
    pub(crate) bytes: u64,
    /// From the first request to the end.
    pub(crate) wall: f64,
    /// The load generator's own CPU.
    pub(crate) cpu: f64,
    /// From a request to its whole answer: median, and 99 %.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// From a request to the first byte of its body, at worst.
    pub(crate) worst_first_byte: f64,
}

impl Plan {
    /// One GET of `path` on each of these connections.
    pub(crate) fn once(addr: SocketAddr, path: String, connections: usize) -> Self {
        Self {
            addr,
            paths: vec![path],
            method: "GET".to_owned(),
            connections,
            pattern: Pattern::Answers(1),
            fresh: false,
        }
    }
}

impl Load {
    /// Runs the load generator as a process and waits for it.
    pub(crate) fn send(plan: &Plan) -> Result<Self> {
        Self::sampled(plan, || Ok(()))
    }

    /// The same, calling `sample` now and then.
    pub(crate) fn sampled(plan: &Plan, sample: impl FnMut() -> Result<()>) -> Result<Self> {
        Self::start(plan)?.finish(LIMIT, sample)
    }

    /// Starts the load generator as a process; [`Load::end`] waits for it.
    pub(crate) fn start(plan: &Plan) -> Result<Process> {
        Role::Load(plan.clone()).spawn()
    }

    /// Waits for a load generator that [`Load::start`] has started.
    pub(crate) fn end(process: Process) -> Result<Self> {
        process.finish(LIMIT, || Ok(()))
    }
}

/// One connection.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When it began to connect, if its next request is counted from then.
    opened: Option<Instant>,
    /// The requests it sends, from `next` on.
    next: usize,
    sent: Instant,
    answered: u64,
    /// The head so far, while it isn't complete.
    head: Vec<u8>,
    /// Body bytes to come; none while the head isn't complete.
    left: Option<u64>,
    seen_body: bool,
    /// Bytes that a slow client may read now, and whether it has had its answer.
    budget: usize,
    ended: bool,
}

/// What one read brought.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Nothing,
    Bytes(usize),
    /// The end of an answer.
    All,
}

struct Generator {
    requests: Vec<Vec<u8>>,
    /// Answers to HEAD have no body, whatever they say.
    bodies: bool,
    load: Load,
    latencies: Vec<f32>,
    room: Vec<u8>,
}

/// Runs and reports.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    ensure!(!plan.paths.is_empty(), "there is nothing to request");
    let mut generator = Generator {
        requests: plan.paths.iter().map(|path| request(plan, path)).collect(),
        bodies: plan.method != "HEAD",
        load: Load::default(),
        latencies: Vec::new(),
        room: vec![0; ROOM],
    };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(plan.connections);
    for at in 0..plan.connections {
        let connection = Connection::open(plan.addr, at)?;
        let data = EventData::new_u64(at as u64);
        epoll::add(&epoll, &connection.stream, data, EventFlags::IN)?;
        connections.push(connection);
    }
    let before = cpu_seconds(std::process::id())?;
    let started = Instant::now();
    for connection in &mut connections {
        generator.ask(connection)?;
    }
    let (mut deadline, mut answers) = (None, 1);
    match plan.pattern {
        Pattern::Answers(count) => answers = count,
        Pattern::Lasting(time) => deadline = Some(started + time),
        Pattern::Slow(time) => {
            generator.trickle(&mut connections, started + time)?;
            connections.clear();
        }
    }
    let mut running = connections.len();
    let mut events = Vec::with_capacity(plan.connections);
    while running > 0 && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&SILENCE))?;
        ensure!(!events.is_empty(), "nothing came for {SILENCE:?}");
        for event in events.drain(..) {
            let at = usize::try_from(event.data.u64())?;
            let connection = connections.get_mut(at).context("a connection of ours")?;
            if generator.receive(connection, ROOM)? != Received::All {
                continue;
            }
            if deadline.is_some() || connection.answered < answers {
                if plan.fresh {
                    connection.reopen(plan.addr)?;
                    epoll::add(&epoll, &connection.stream, event.data, EventFlags::IN)?;
                }
                generator.ask(connection)?;
            } else {
                epoll::delete(&epoll, &connection.stream)?;
                running -= 1;
            }
        }
    }
    let wall = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds(std::process::id())? - before;
    println!("{}", serde_json::to_string(&generator.finish(wall, cpu))?);
    Ok(())
}

fn request(plan: &Plan, path: &str) -> Vec<u8> {
    // A usual client's list, and nothing that a server would have to compress or negotiate.
    format!(
        "{} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1\r\n\
         Accept: application/vnd.oci.image.index.v1+json, \
         application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.docker.distribution.manifest.v2+json\r\n\r\n",
        plan.method, plan.addr
    )
    .into_bytes()
}

impl Connection {
    fn open(addr: SocketAddr, next: usize) -> Result<Self> {
        let stream = TcpStream::connect(addr).with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            opened: None,
            next,
            sent: Instant::now(),
            answered: 0,
            head: Vec::new(),
            left: None,
            seen_body: false,
            budget: 0,
            ended: false,
        })
    }

    /// Closes the connection, which also takes it from the event queue, and opens another.
    fn reopen(&mut self, addr: SocketAddr) -> Result<()> {
        let started = Instant::now();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Ports of closed connections wait for a minute: one address has too few for a fast server.
        let source = u8::try_from(self.next % SOURCES)?;
        socket.bind(&SocketAddr::from(([127, 0, 1, source + 1], 0)).into())?;
        socket.connect(&addr.into())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        (self.stream, self.opened) = (stream, Some(started));
        Ok(())
    }
}

impl Generator {
    fn ask(&self, connection: &mut Connection) -> Result<()> {
        let at = connection.next % self.requests.len();
        let request = self.requests.get(at).context("a request of ours")?;
        connection.next += 1;
        connection.sent = connection.opened.take().unwrap_or_else(Instant::now);
        connection.seen_body = false;
        let written = connection.stream.write(request)?;
        ensure!(written == request.len(), "no room for one request");
        Ok(())
    }

    /// Reads all connections slowly until the deadline.
    fn trickle(&mut self, connections: &mut [Connection], deadline: Instant) -> Result<()> {
        let mut budget = GULP;
        while Instant::now() < deadline {
            for connection in &mut *connections {
                connection.budget += budget;
                while connection.budget > 0 && !connection.ended {
                    match self.receive(connection, connection.budget)? {
                        Received::Nothing => break,
                        Received::Bytes(bytes) => connection.budget -= bytes,
                        Received::All => connection.ended = true,
                    }
                }
            }
            budget = TRICKLE;
            thread::sleep(TRICKLE_EVERY);
        }
        Ok(())
    }

    /// Reads once, at most `limit` bytes of a body.
    fn receive(&mut self, connection: &mut Connection, limit: usize) -> Result<Received> {
        let taken = match connection.left {
            None => self.receive_head(connection, limit),
            Some(left) => self.discard(connection, left, limit),
        };
        let taken = match taken {
            Err(error)
                if error
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|error| error.kind() == ErrorKind::WouldBlock) =>
            {
                return Ok(Received::Nothing);
            }
            taken => taken?,
        };
        if connection.left != Some(0) {
            return Ok(Received::Bytes(taken));
        }
        connection.left = None;
        connection.answered += 1;
        self.load.requests += 1;
        let latency = connection.sent.elapsed().as_secs_f32();
        self.latencies.push(latency);
        Ok(Received::All)
    }

    fn receive_head(&mut self, connection: &mut Connection, limit: usize) -> Result<usize> {
        let room = self
            .room
            .get_mut(..HEAD_ROOM.min(limit))
            .context("ROOM is larger")?;
        let got = connection.stream.read(room)?;
        ensure!(got > 0, "the server closed a connection");
        connection.head.extend(room.iter().take(got));
        let end = connection.head.windows(4).position(|at| at == b"\r\n\r\n");
        let Some(end) = end else {
            ensure!(connection.head.len() < HEAD_ROOM, "the head is too long");
            return Ok(got);
        };
        let early = (connection.head.len() - end - 4) as u64;
        let head = connection.head.get(..end + 4).unwrap_or_default();
        let length = self.length(std::str::from_utf8(head)?)?;
        connection.head.clear();
        let left = length
            .checked_sub(early)
            .context("more than was announced")?;
        connection.left = Some(left);
        self.note_body(connection, early);
        Ok(got)
    }

    /// Body bytes of an answer with this head.
    fn length(&self, head: &str) -> Result<u64> {
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!("an answer of another kind: {head}");
        }
        if !self.bodies {
            return Ok(0);
        }
        let length = header(head, "content-length").context("no Content-Length")?;
        Ok(length.parse()?)
    }

    /// `MSG_TRUNC` frees received bytes without copying them out (tcp(7)).
    fn discard(&mut self, connection: &mut Connection, left: u64, limit: usize) -> Result<usize> {
        let count = usize::try_from(left)?.min(limit).min(ROOM);
        let room = self.room.get_mut(..count).context("no more than ROOM")?;
        let (_, got) =
            recv(&connection.stream, room, RecvFlags::TRUNC).map_err(std::io::Error::from)?;
        ensure!(got > 0, "a body ended {left} bytes early");
        connection.left = Some(left - got as u64);
        self.note_body(connection, got as u64);
        Ok(got)
    }

    fn note_body(&mut self, connection: &mut Connection, bytes: u64) {
        self.load.bytes += bytes;
        if bytes > 0 && !connection.seen_body {
            connection.seen_body = true;
            let first = connection.sent.elapsed().as_secs_f64();
            let worst = &mut self.load.worst_first_byte;
            *worst = worst.max(first);
        }
    }

    fn finish(mut self, wall: f64, cpu: f64) -> Load {
        self.latencies.sort_by(f32::total_cmp);
        let at = |percent: usize| {
            let at = self.latencies.len() * percent / 100;
            f64::from(self.latencies.get(at).copied().unwrap_or(0.0))
        };
        Load {
            wall,
            cpu,
            p50: at(50),
            p99: at(99),
            ..self.load
        }
    }
}
