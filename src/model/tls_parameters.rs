//! [`TlsParameters`]: the parameters of an `amqps://` URL for TLS
//! (<https://www.rabbitmq.com/docs/uri-query-parameters>). Pure: the files are not read here.

use std::path::PathBuf;

use crate::model::error::Error;
use crate::model::url_parts::invalid;

/// What one address says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsParameters {
    /// The only authorities to trust.
    pub(crate) authority: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    /// The key of the certificate; without it, the key is in the same file.
    pub(crate) key: Option<PathBuf>,
    /// The name that the broker's certificate must be for, if it is not the host's.
    pub(crate) server_name: Option<String>,
}

pub(crate) const NAMES: [&str; 5] =
    ["cacertfile", "certfile", "keyfile", "verify", "server_name_indication"];

impl TlsParameters {
    /// Sets one of these names.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if value.is_empty() {
            return Err(invalid(format!("the parameter '{name}' is empty")));
        }
        match (name, value) {
            ("cacertfile", file) => self.authority = Some(file.into()),
            ("certfile", file) => self.certificate = Some(file.into()),
            ("keyfile", file) => self.key = Some(file.into()),
            ("server_name_indication", "disable") => {
                return Err(invalid(
                    "server_name_indication=disable would take the certificate of any host; write \
                     the name that the broker's certificate is for",
                ));
            }
            ("server_name_indication", server) => self.server_name = Some(server.into()),
            ("verify", "verify_peer") => {}
            ("verify", "verify_none") => {
                return Err(invalid(
                    "verify=verify_none would take any certificate, and send the password to any \
                     server; leave it out, and name the broker's authority with cacertfile",
                ));
            }
            _ => return Err(invalid("the parameter 'verify' takes verify_peer")),
        }
        Ok(())
    }

    /// Whether the parameters fit each other.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match (&self.certificate, &self.key) {
            (None, Some(_)) => Err(invalid("the parameter 'keyfile' needs 'certfile'")),
            _ => Ok(()),
        }
    }
}
