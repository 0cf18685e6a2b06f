//! Explores the orders in which threads can change something that they share.

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread;

/// Orders that each scheduler tries of a scene.
const ORDERS: usize = 4_000;

/// Runs a scene in thousands of orders, the same in every run with this seed: some by chance, some with
/// `depth` changes between threads, which finds rare ones. The threads change at shuttle's locks.
pub fn try_orders(seed: u64, depth: usize, scene: impl Fn() + Copy + Send + Sync + 'static) {
    let config = shuttle::Config::default;
    let random = RandomScheduler::new_from_seed(seed, ORDERS);
    shuttle::Runner::new(random, config()).run(scene);
    let rare = PctScheduler::new_from_seed(seed, depth, ORDERS);
    shuttle::Runner::new(rare, config()).run(scene);
}

/// Runs a thread for each item, to its end. A thread that panics panics here, too.
pub fn together<S, T>(scene: &Arc<S>, items: impl IntoIterator<Item = T>, run: fn(&S, T))
where
    S: Send + Sync + 'static,
    T: Send + 'static,
{
    let spawn = |item| {
        let scene = Arc::clone(scene);
        thread::spawn(move || run(&scene, item))
    };
    let threads: Vec<_> = items.into_iter().map(spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
