//! A cluster of three real nodes. Tests break one at a time.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::broker::poll;
use super::client::Client;
use super::command::{Command, Output};

/// The cluster whose folder `RW_TEST_CLUSTER` names.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
}

pub(crate) const NODES: [usize; 3] = [1, 2, 3];

/// The cluster, for one test at a time. What a failed test has left is mended.
pub(crate) fn cluster() -> MutexGuard<'static, Option<Cluster>> {
    static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);
    let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    cluster.get_or_insert_with(Cluster::find).mend();
    cluster
}

impl Cluster {
    fn find() -> Cluster {
        let dir = std::env::var_os("RW_TEST_CLUSTER");
        let dir = dir.expect("tests/cluster.sh starts a cluster and names its folder");
        Cluster { dir: dir.into() }
    }

    /// The URLs of these nodes, as a client takes them.
    pub(crate) fn url(&self, nodes: &[usize]) -> String {
        let nodes: Vec<String> = nodes.iter().map(usize::to_string).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        self.script(&[&["url"], &nodes[..]].concat()).success().trim().to_owned()
    }

    pub(crate) fn client(&self, node: usize) -> Client {
        Client::connect(&self.url(&[node]))
    }

    /// As a crash of the machine would.
    pub(crate) fn kill(&self, node: usize) {
        self.to_node("kill", node);
    }

    /// In good order.
    pub(crate) fn stop(&self, node: usize) {
        self.to_node("stop", node);
    }

    /// Starts a node again; it is a member on return.
    pub(crate) fn start(&self, node: usize) {
        self.to_node("start", node);
    }

    /// Stops a node in its tracks: its sockets stay open, and nobody answers.
    pub(crate) fn freeze(&self, node: usize) {
        self.to_node("pause", node);
    }

    pub(crate) fn thaw(&self, node: usize) {
        self.to_node("resume", node);
    }

    /// Waits until this node leads this quorum queue, or has this classic one.
    pub(crate) fn wait_for_leader(&self, queue: &str, node: usize) {
        let what = format!("node {node} leads {queue}");
        poll(&what, ANSWER_LIMIT, || self.leads(node, queue).then_some(()));
    }

    /// Whether this node leads this quorum queue, or has this classic one.
    pub(crate) fn leads(&self, node: usize, queue: &str) -> bool {
        let url = self.url(&[node]);
        let port = url.rsplit(':').next().expect("a URL has a port");
        let list = ["ctl", "1", "-q", "list_queues", "--no-table-headers", "name", "pid"];
        let rows = self.script(&list).success();
        let row = rows.lines().find(|row| row.split('\t').next() == Some(queue));
        row.is_some_and(|row| row.contains(&format!("rw-{port}@localhost")))
    }

    fn mend(&self) {
        for node in NODES {
            // Nothing is there to go on where a node is down.
            self.script(&["resume", &node.to_string()]);
            self.start(node);
        }
    }

    fn to_node(&self, command: &str, node: usize) {
        self.script(&[command, &node.to_string()]).assert_code(0);
    }

    fn script(&self, arguments: &[&str]) -> Output {
        let dir = self.dir.to_string_lossy();
        Command::program(SCRIPT, &[&["--dir", &*dir], arguments].concat()).run(ANSWER_LIMIT)
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cluster.sh");
/// Longer than a node takes to start on a machine with much to do.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
