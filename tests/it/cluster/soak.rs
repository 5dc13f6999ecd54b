//! Random faults of a cluster, one node at a time, from a seed.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rabbit_work::QueueType::Quorum;

use super::load::{Load, WORKERS};
use crate::support::cluster::{Cluster, NODES, cluster};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Freeze,
    Restart,
    KillWorker,
}

/// As likely as they stand here.
const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Freeze,
    Fault::Freeze,
    Fault::Restart,
    Fault::KillWorker,
    Fault::KillWorker,
];

#[test]
#[ignore = "scripts/soak.sh --cluster runs it, for as long as its variables say"]
fn cluster_soak() {
    let minutes: f64 = variable("SOAK_MINUTES").parse().expect("a number of minutes");
    let mut random = Rng::with_seed(variable("SOAK_SEED").parse().expect("a seed"));
    let cluster = cluster();
    let cluster = cluster.as_ref().expect("a cluster");
    let order = random.choose_multiple(NODES, NODES.len());
    let mut load = Load::start(cluster, Quorum, order[0], &order);

    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs_f64(minutes * 60.0) {
        thread::sleep(Duration::from_millis(random.u64(500..5000)));
        let fault = FAULTS[random.usize(..FAULTS.len())];
        println!("{:7.1} s {fault:?}", begun.elapsed().as_secs_f64());
        strike(cluster, &mut load, &mut random, fault);
        load.goes_on();
    }

    load.finish().assert_survived();
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("scripts/soak.sh says {name}"))
}

/// Afterwards all nodes are well again.
fn strike(cluster: &Cluster, load: &mut Load, random: &mut Rng, fault: Fault) {
    let node = NODES[random.usize(..NODES.len())];
    let pause = Duration::from_millis(random.u64(1000..50_000));
    let worker = random.usize(..WORKERS);
    match fault {
        Fault::Kill => {
            cluster.kill(node);
            thread::sleep(pause / 4);
            cluster.start(node);
        }
        Fault::Freeze => {
            // A new connection to RabbitMQ 3.10 waits about 65 s for a frozen leader, and each one
            // through that node becomes new (docs/failures.md).
            let leads = cluster.leads(node, load.queue());
            let node = if leads { node % NODES.len() + 1 } else { node };
            cluster.freeze(node);
            thread::sleep(pause);
            cluster.thaw(node);
        }
        Fault::Restart => {
            cluster.stop(node);
            cluster.start(node);
        }
        Fault::KillWorker => load.kill_worker(worker),
    }
}
