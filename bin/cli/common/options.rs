//! The options for the broker and the queue, and what they mean.

#[cfg(feature = "tls")]
use std::fs;
#[cfg(feature = "tls")]
use std::path::Path;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use log::warn;
#[cfg(feature = "tls")]
use rabbit_work::Tls;
use rabbit_work::{Argument, Broker, Queue, QueueType};

use crate::cli::common::error::CommandError;
use crate::cli::common::logging::LogFormat;
use crate::cli::common::url_file;
#[cfg(feature = "tls")]
use crate::cli::common::variables::is_from_variable;

/// The tutorial's queue: only here a command guesses what an empty command line means.
pub(crate) const TUTORIAL_QUEUE: &str = "task_queue";

// Under headings of their own, so that a subcommand's help shows its own options first.
const BROKER: &str = "Broker";
pub(crate) const QUEUE: &str = "Queue";

#[derive(Args, Debug)]
pub(crate) struct BrokerArgs {
    /// Broker URL, amqp://user:password@host:port/vhost; for a cluster, repeat it or
    /// separate URLs by commas
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_name = "URL",
        hide_default_value = true,
        default_value = "amqp://guest:guest@localhost:5672"
    )]
    url: Vec<String>,

    /// Read the broker's URLs from FILE, one on each line, so that no other user sees the password
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_name = "FILE",
        conflicts_with = "url"
    )]
    url_file: Option<PathBuf>,

    /// The connections' name in RabbitMQ; default: role, queue, host and process id
    #[arg(long, global = true, help_heading = BROKER, value_name = "TEXT")]
    name: Option<String>,

    /// The order of addresses, shuffled or given; one that fails moves to the end
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_enum,
        value_name = "ORDER",
        hide_possible_values = true,
        default_value = "shuffled"
    )]
    url_order: UrlOrder,

    /// Write log lines as text or as JSON objects
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,

    /// Trust the certificate authorities in FILE (PEM) for amqps:// addresses, besides the system's
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Present this client certificate (PEM) to the broker
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of --cert (PEM, without a passphrase)
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct QueueArgs {
    /// The queue's name
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "NAME",
        default_value = TUTORIAL_QUEUE
    )]
    queue: String,

    #[command(flatten)]
    declaration: DeclarationArgs,
}

/// How a queue is declared.
#[derive(Args, Debug)]
pub(crate) struct DeclarationArgs {
    /// The queue's type
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_enum,
        value_name = "TYPE",
        default_value = "classic"
    )]
    queue_type: TypeArg,

    /// Declare the queue as not durable: a broker restart deletes it
    #[arg(long, global = true, help_heading = QUEUE)]
    transient_queue: bool,

    /// A quorum queue dead-letters a task after N deliveries that ended in a crash
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "N",
        default_value = "20",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    delivery_limit: u32,

    /// Declare the queue with this argument, such as x-single-active-consumer=true; may be repeated
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "KEY=VALUE",
        value_parser = parse_argument
    )]
    queue_arg: Vec<(String, Argument)>,

    /// Declare a classic queue with priorities 0 to N (x-max-priority)
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..)
    )]
    max_priority: Option<u8>,

    /// Use an existing queue as it is, without declaring it
    #[arg(long, global = true, help_heading = QUEUE)]
    no_declare: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UrlOrder {
    Shuffled,
    Given,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    Classic,
    Quorum,
}

impl BrokerArgs {
    /// Whether nobody is to see the address, with its password, outside a file.
    pub(crate) fn has_address_in_file(&self) -> bool {
        self.url_file.is_some()
    }

    pub(crate) fn broker(&self) -> Result<Broker, CommandError> {
        let urls = self.urls()?;
        let mut broker = Broker::new(&urls)?;
        if let Some(name) = &self.name {
            broker = broker.name(name);
        }
        if matches!(self.url_order, UrlOrder::Given) {
            broker = broker.in_order();
        }
        #[cfg(feature = "tls")]
        let broker = broker.tls(self.tls(&urls)?);
        Ok(broker)
    }

    fn urls(&self) -> Result<Vec<String>, CommandError> {
        self.url_file.as_deref().map_or_else(|| Ok(self.url.clone()), url_file::read)
    }

    #[cfg(feature = "tls")]
    fn tls(&self, urls: &[String]) -> Result<Tls, CommandError> {
        let options = [("--ca", &self.ca), ("--cert", &self.cert)];
        let given = options.into_iter().find(|(_, file)| file.is_some());
        let is_asked = |option: &str| !is_from_variable(option.trim_start_matches('-'));
        let is_unused = |(option, _): &(&str, _)| is_asked(option) && !has_encrypted_address(urls);
        if let Some((option, _)) = given.filter(is_unused) {
            let reason = "no address begins with amqps://, so nothing would be encrypted; use an \
                          amqps:// address";
            return Err(CommandError::usage(option, reason));
        }
        let mut tls = Tls::default();
        if let Some(ca) = &self.ca {
            tls = tls.authority(read("--ca", ca)?);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(read("--cert", cert)?, read("--key", key)?);
        }
        Ok(tls)
    }
}

#[cfg(feature = "tls")]
fn has_encrypted_address(urls: &[String]) -> bool {
    let mut addresses = urls.iter().flat_map(|url| url.split(','));
    addresses.any(|it| it.trim_start().to_ascii_lowercase().starts_with("amqps:"))
}

impl QueueArgs {
    pub(crate) fn is_tutorial_queue(&self) -> bool {
        self.queue == TUTORIAL_QUEUE
    }

    pub(crate) fn queue(&self) -> Queue {
        self.declaration.queue(&self.queue)
    }
}

impl DeclarationArgs {
    pub(crate) fn queue(&self, name: &str) -> Queue {
        if name.contains(',') {
            warn!("--queue takes one name; '{name}' is one queue with a comma in its name");
        }
        let kind = match self.queue_type {
            TypeArg::Classic => QueueType::Classic,
            TypeArg::Quorum => QueueType::Quorum,
        };
        let mut queue = Queue::new(name).queue_type(kind).delivery_limit(self.delivery_limit);
        if self.transient_queue {
            queue = queue.transient();
        }
        for (name, value) in &self.queue_arg {
            queue = queue.argument(name, value.clone());
        }
        if let Some(highest) = self.max_priority {
            queue = queue.argument("x-max-priority", i64::from(highest));
        }
        if self.no_declare {
            queue = queue.passive();
        }
        queue
    }
}

/// A value that reads as a number, true or false is one; any other value is a text.
fn parse_argument(text: &str) -> Result<(String, Argument), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let number = value.parse::<i64>().map(Argument::from);
            let flag = value.parse::<bool>().map(Argument::from);
            Ok((name.into(), number.or(flag).unwrap_or_else(|_| value.into())))
        }
        _ => Err("write it as KEY=VALUE".into()),
    }
}

#[cfg(feature = "tls")]
fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, CommandError> {
    let unreadable = |error| CommandError::usage(option, format!("{}: {error}", path.display()));
    fs::read(path).map_err(unreadable)
}
