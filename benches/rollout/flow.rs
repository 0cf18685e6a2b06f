//! Bytes as fluids: a rollout of one image to many nodes, in small steps of time. Each sender shares its line
//! equally among its connections (max-min), as TCP does about; a connection takes no more than what its
//! receiver has room for, and what the sender has of the blob by then.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a model: failing is stopping, and figures are approximate"
)]

use std::collections::HashMap;

use millpond::oci::{Algorithm, Digest};
use millpond::replicas::Members;

/// Bytes a second of a gigabit a second.
pub(crate) const GBIT: f64 = 1e9 / 8.0;
/// Layers that a node pulls at a time.
const AT_ONCE: usize = 3;
/// Parts of a blob that a replica uploads at a time, each on a connection.
const UPLOADS: f64 = 4.0;
/// Seconds after which a rollout that doesn't end is given up.
const LIMIT: f64 = 100_000.0;

/// When a replica sends clients to the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirect {
    Never,
    /// While it sends more bodies than this.
    Busy(usize),
    Always,
}

/// A rollout. Rates are in bytes a second.
#[derive(Debug, Clone)]
pub(crate) struct Rollout {
    pub(crate) nodes: usize,
    /// Seconds within which the nodes begin.
    pub(crate) within: f64,
    pub(crate) replicas: usize,
    /// Bytes of each layer.
    pub(crate) layers: Vec<u64>,
    /// Of each node's line, and of each replica's in each direction.
    pub(crate) node: f64,
    pub(crate) replica: f64,
    /// Of one blob from the upstream.
    pub(crate) upstream: f64,
    /// Of the whole bucket.
    pub(crate) bucket: f64,
    pub(crate) redirect: Redirect,
    /// Whether the replicas and the bucket have the image before the first node asks.
    pub(crate) is_cached: bool,
    /// Seconds of a step.
    pub(crate) step: f64,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Replica(usize),
    Bucket,
}

/// Who receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Node(usize),
    Replica(usize),
    Bucket,
}

/// A body on its way.
#[derive(Debug)]
struct Flow {
    from: Sender,
    to: Receiver,
    layer: usize,
    /// How many connections it has.
    connections: f64,
    got: f64,
    /// What it may get in this step, and gets.
    demand: f64,
    share: f64,
}

#[derive(Debug, Clone, Default)]
struct Node {
    begins: f64,
    /// The next layer, and how many are on their way or have come.
    next: usize,
    pulling: usize,
    /// Seconds that it took.
    took: Option<f64>,
}

/// The bytes that a replica has of a layer.
#[derive(Debug, Clone, Copy, Default)]
struct Copy {
    bytes: f64,
    is_asked: bool,
}

struct State<'a> {
    plan: &'a Rollout,
    now: f64,
    random: fastrand::Rng,
    nodes: Vec<Node>,
    /// By replica and layer.
    copies: Vec<Vec<Copy>>,
    /// The bytes of each layer in the bucket.
    bucket: Vec<f64>,
    owners: Vec<usize>,
    flows: Vec<Flow>,
}

impl Rollout {
    /// Seconds that each node takes, the fastest first.
    pub(crate) fn run(&self) -> Vec<f64> {
        let mut state = State::new(self);
        while state.nodes.iter().any(|node| node.took.is_none()) {
            assert!(state.now < LIMIT, "it doesn't end: {self:?}");
            state.step();
        }
        let mut took: Vec<_> = state.nodes.iter().filter_map(|node| node.took).collect();
        took.sort_by(f64::total_cmp);
        took
    }
}

/// The owner of each layer among the replicas, by the program's own order.
fn owners(replicas: usize, layers: usize) -> Vec<usize> {
    let names = (0..replicas).map(|replica| format!("10.0.0.{replica}:5000"));
    let names: Vec<_> = names.collect();
    let members = Members::new(names.iter().map(String::as_str), None);
    let owner = |layer: usize| {
        let digest = Digest::of(Algorithm::Sha256, format!("layer {layer}").as_bytes());
        let owner = members.ahead(&digest.to_string()).swap_remove(0);
        names.iter().position(|name| **name == *owner).unwrap()
    };
    (0..layers).map(owner).collect()
}

impl<'a> State<'a> {
    fn new(plan: &'a Rollout) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let node = |_| Node {
            begins: random.f64() * plan.within,
            ..Node::default()
        };
        let nodes = (0..plan.nodes).map(node).collect();
        let copy = |bytes: &u64| Copy {
            bytes: if plan.is_cached { *bytes as f64 } else { 0.0 },
            is_asked: plan.is_cached,
        };
        let copies: Vec<_> = plan.layers.iter().map(copy).collect();
        Self {
            plan,
            now: 0.0,
            random,
            nodes,
            bucket: copies.iter().map(|copy| copy.bytes).collect(),
            copies: vec![copies; plan.replicas],
            owners: owners(plan.replicas, plan.layers.len()),
            flows: Vec::new(),
        }
    }

    fn size(&self, layer: usize) -> f64 {
        self.plan.layers[layer] as f64
    }

    fn step(&mut self) {
        self.ask();
        self.receive_from_upstream();
        self.share();
        self.deliver();
        self.now += self.plan.step;
    }

    /// The nodes ask for their next layers.
    fn ask(&mut self) {
        let mut sending = self.sending();
        for number in 0..self.nodes.len() {
            loop {
                let node = &mut self.nodes[number];
                let may_ask = node.begins <= self.now && node.pulling < AT_ONCE;
                if !may_ask || node.next == self.plan.layers.len() {
                    break;
                }
                let layer = node.next;
                node.next += 1;
                node.pulling += 1;
                // A load balancer takes any replica.
                let replica = self.random.usize(..self.plan.replicas);
                let is_redirected = self.bucket[layer] >= self.size(layer)
                    && match self.plan.redirect {
                        Redirect::Never => false,
                        Redirect::Busy(above) => sending[replica] > above,
                        Redirect::Always => true,
                    };
                let from = if is_redirected {
                    Sender::Bucket
                } else {
                    sending[replica] += 1;
                    self.fetch(replica, layer);
                    Sender::Replica(replica)
                };
                self.open(from, Receiver::Node(number), layer);
            }
        }
    }

    /// How many bodies each replica sends.
    fn sending(&self) -> Vec<usize> {
        let mut sending = vec![0; self.plan.replicas];
        for flow in &self.flows {
            if let Sender::Replica(replica) = flow.from {
                sending[replica] += 1;
            }
        }
        sending
    }

    /// A replica that lacks a layer asks its owner, which asks the upstream.
    fn fetch(&mut self, replica: usize, layer: usize) {
        if std::mem::replace(&mut self.copies[replica][layer].is_asked, true) {
            return;
        }
        let owner = self.owners[layer];
        if owner != replica {
            self.fetch(owner, layer);
            self.open(Sender::Replica(owner), Receiver::Replica(replica), layer);
        }
    }

    fn open(&mut self, from: Sender, to: Receiver, layer: usize) {
        let is_upload = to == Receiver::Bucket;
        self.flows.push(Flow {
            from,
            to,
            layer,
            connections: if is_upload { UPLOADS } else { 1.0 },
            got: 0.0,
            demand: 0.0,
            share: 0.0,
        });
    }

    /// The owners receive from the upstream; what has come whole, they upload.
    fn receive_from_upstream(&mut self) {
        for layer in 0..self.owners.len() {
            let (owner, size) = (self.owners[layer], self.size(layer));
            let copy = &mut self.copies[owner][layer];
            if !copy.is_asked || copy.bytes >= size {
                continue;
            }
            copy.bytes = (copy.bytes + self.plan.upstream * self.plan.step).min(size);
            if copy.bytes >= size && self.plan.redirect != Redirect::Never {
                self.open(Sender::Replica(owner), Receiver::Bucket, layer);
            }
        }
    }

    /// What each flow gets in this step.
    fn share(&mut self) {
        let mut received: HashMap<usize, usize> = HashMap::new();
        for flow in &self.flows {
            if let Receiver::Node(node) = flow.to {
                *received.entry(node).or_default() += 1;
            }
        }
        let mut senders = vec![Vec::new(); self.plan.replicas + 1];
        for number in 0..self.flows.len() {
            let flow = &self.flows[number];
            let (at, has) = match flow.from {
                Sender::Replica(replica) => (replica, self.copies[replica][flow.layer].bytes),
                Sender::Bucket => (self.plan.replicas, self.bucket[flow.layer]),
            };
            let room = match flow.to {
                Receiver::Node(node) => self.plan.node / received[&node] as f64,
                Receiver::Replica(_) | Receiver::Bucket => self.plan.replica,
            };
            let demand = (room * self.plan.step).min(has - flow.got);
            let flow = &mut self.flows[number];
            (flow.demand, flow.share) = (demand, 0.0);
            if demand > 0.0 {
                senders[at].push(number);
            }
        }
        for (at, waiting) in senders.into_iter().enumerate() {
            let is_bucket = at == self.plan.replicas;
            let rate = if is_bucket {
                self.plan.bucket
            } else {
                self.plan.replica
            };
            self.divide(rate * self.plan.step, waiting);
        }
    }

    /// Divides what a sender sends in this step among its flows: equally among their connections, but for those
    /// that want less, which leave the rest to the others.
    fn divide(&mut self, mut left: f64, mut waiting: Vec<usize>) {
        loop {
            let connections = waiting.iter().map(|number| self.flows[*number].connections);
            let equal = left / connections.sum::<f64>();
            let before = waiting.len();
            waiting.retain(|number| {
                let flow = &mut self.flows[*number];
                let is_content = flow.demand <= equal * flow.connections;
                if is_content {
                    flow.share = flow.demand;
                    left -= flow.demand;
                }
                !is_content
            });
            if waiting.len() == before {
                for number in waiting {
                    let flow = &mut self.flows[number];
                    flow.share = equal * flow.connections;
                }
                return;
            }
        }
    }

    /// Hands the shares over, and ends what is complete.
    fn deliver(&mut self) {
        let end = self.now + self.plan.step;
        let layers = &self.plan.layers;
        let (nodes, copies, bucket) = (&mut self.nodes, &mut self.copies, &mut self.bucket);
        self.flows.retain_mut(|flow| {
            let size = layers[flow.layer] as f64;
            flow.got += flow.share;
            // Sums of shares are a little less than what they are the shares of.
            let is_complete = flow.got > size - 0.5;
            let got = if is_complete { size } else { flow.got };
            match flow.to {
                Receiver::Replica(replica) => copies[replica][flow.layer].bytes = got,
                Receiver::Bucket => bucket[flow.layer] = got,
                Receiver::Node(number) => {
                    let node = &mut nodes[number];
                    node.pulling -= usize::from(is_complete);
                    if node.pulling == 0 && node.next == layers.len() {
                        node.took = Some(end - node.begins);
                    }
                }
            }
            !is_complete
        });
    }
}
