//! Virtual hosts of a test's own.

use super::broker::Lent;
use super::client::unique_queue;

/// A virtual host of which everything is allowed to the user. Goes with this.
pub(crate) struct Vhost<'a> {
    broker: &'a Lent,
    pub(crate) name: String,
}

impl<'a> Vhost<'a> {
    /// With a default queue type.
    pub(crate) fn with_default(broker: &'a Lent, kind: &str) -> Vhost<'a> {
        Vhost::add(broker, &["--default-queue-type", kind])
    }

    pub(crate) fn without_default(broker: &'a Lent) -> Vhost<'a> {
        Vhost::add(broker, &[])
    }

    fn add(broker: &'a Lent, flags: &[&str]) -> Vhost<'a> {
        let name = unique_queue("vhost");
        broker.ctl(&[&["add_vhost", &name], flags].concat());
        broker.ctl(&["set_permissions", "-p", &name, "guest", ".*", ".*", ".*"]);
        Vhost { broker, name }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.broker.url(), self.name)
    }

    pub(crate) fn allow_connections(&self, most: usize) {
        let limits = format!("{{\"max-connections\": {most}}}");
        self.broker.ctl(&["set_vhost_limits", "-p", &self.name, &limits]);
    }

    /// The name and the type of each queue, sorted.
    pub(crate) fn queues(&self) -> Vec<String> {
        let listed =
            self.broker.ctl(&["list_queues", "-p", &self.name, "name", "type", "--silent"]);
        let mut queues: Vec<String> = listed.lines().map(|it| it.replace('\t', " ")).collect();
        queues.sort();
        queues
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        self.broker.ctl(&["delete_vhost", &self.name]);
    }
}
