//! Replicas are added and removed while clients pull. They run in this process, so that a DNS of the test can name
//! them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use millpond::app::App;
use millpond::clock::Clock;
use millpond::config;
use millpond::storage::MemoryStore;
use millpond::upstream::Lookup;
use testkit::{Options, ReservedPort};

use crate::load::{Address, Load, costs_little};
use crate::{SECRET, Upstream};

/// Bytes a second from the upstream, so that downloads are under way at each change.
const RATE: u64 = 48 << 20;
/// Pulls between two steps.
const PULLS: usize = 60;

/// The addresses of the replicas' name.
#[derive(Clone, Default)]
struct Dns(Arc<Mutex<Vec<SocketAddr>>>);

struct Replica {
    app: App,
    port: ReservedPort,
}

impl Replica {
    async fn start(upstream: &Upstream, dns: &Dns) -> Self {
        let port = ReservedPort::new();
        let (own, upstream) = (port.address, upstream.address);
        let text = format!(
            "version: 0.1\nstorage: inmemory\n\
             http: {{addr: '{own}', shutdowndelay: 200ms, debug: {{addr: '127.0.0.1:0'}}}}\n\
             proxy: {{remoteurl: 'http://{upstream}', tags: {{ttl: 1s}}, segments: {{count: 1}}}}\n\
             replicas: {{peers: 'replicas.test:5000', secret: {SECRET}}}\n"
        );
        let config = config::parse(&text, "the test", std::iter::empty());
        let config = config.unwrap().config;
        let zone = Arc::clone(&dns.0);
        let lookup = Lookup::by(move |_| {
            let addresses = zone.lock().unwrap().clone();
            async { Ok(addresses) }
        });
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
        let store = Arc::new(MemoryStore::new());
        let app = App::start_among(&config, store, clock, lookup);
        let app = app.await.unwrap();
        Self { app, port }
    }

    fn address(&self) -> Address {
        Address {
            registry: self.port.address,
            health: self
                .app
                .debug_address()
                .unwrap()
                .to_string()
                .parse()
                .unwrap(),
        }
    }

    /// Waits until it knows so many others; it looks every five seconds.
    async fn knows(&self, others: usize) {
        let metrics = Arc::clone(self.app.metrics());
        let line = format!("millpond_replicas {others}\n");
        let knows = move || testkit::poll(&line, || metrics.render().contains(&line));
        tokio::task::spawn_blocking(knows).await.unwrap();
    }
}

impl Dns {
    fn name(&self, replicas: &[Replica]) {
        let addresses = replicas.iter().map(|replica| replica.port.address);
        *self.0.lock().unwrap() = addresses.collect();
    }
}

async fn all_know(replicas: &[Replica], load: &mut Load) {
    for replica in replicas {
        load.beside(replica.knows(replicas.len() - 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_from_three_to_five_and_back_fails_no_pull() {
    let (upstream, dns) = (
        Upstream::with(Options::default().rate(RATE)).await,
        Dns::default(),
    );
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Replica::start(&upstream, &dns).await);
    }
    dns.name(&replicas);
    let mut load = Load::start(&upstream, replicas.iter().map(Replica::address).collect());
    load.serves(PULLS).await;
    for _ in 0..2 {
        let replica = load.beside(Box::pin(Replica::start(&upstream, &dns))).await;
        load.add(replica.address());
        replicas.push(replica);
        dns.name(&replicas);
        load.serves(PULLS).await;
    }
    all_know(&replicas, &mut load).await;
    load.serves(PULLS).await;
    for _ in 0..2 {
        // It ends while the others ask it yet.
        let Replica { app, port } = replicas.pop().unwrap();
        assert!(load.beside(app.stop()).await);
        load.serves(PULLS).await;
        dns.name(&replicas);
        drop(port);
    }
    all_know(&replicas, &mut load).await;
    load.serves(PULLS).await;
    load.end().await;
    costs_little(&upstream, 5);
}
