//! Why one end refused the other during TLS, in words that say what a person can do.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError, Error};

/// Why a person has to act on this failure of reading; `None` if it may pass. In TLS 1.3 the broker
/// checks our certificate after our side of the handshake is over, so that its refusal comes with the
/// next read.
pub(crate) fn refusal(error: &io::Error) -> Option<String> {
    match tls_error(error)? {
        Error::InvalidCertificate(error) => Some(of_certificate(error)),
        Error::AlertReceived(alert) => of_alert(*alert).map(str::to_owned),
        Error::PeerIncompatible(error) => Some(format!(
            "the broker and this program have no version or cipher of TLS in common; it needs TLS 1.2 or 1.3 \
             ({error:?})"
        )),
        _ => None,
    }
}

/// The same before the broker has answered in TLS.
pub(crate) fn refusal_before_tls(error: &io::Error) -> Option<String> {
    let is_tls = !matches!(tls_error(error)?, Error::InvalidMessage(_));
    let text = "the answer is not TLS; for a port without it, write amqp:// in the URL";
    if is_tls { None } else { Some(text.into()) }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Why the broker's certificate did not pass.
fn of_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    let clock = "or this machine's clock is wrong";
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            format!("the broker's certificate has expired, {clock}")
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            format!("the broker's certificate is not valid yet, {clock}")
        }
        E::NotValidForNameContext { expected, presented } => {
            of_name(&expected.to_str(), presented)
        }
        E::UnknownIssuer => {
            "the broker's certificate is not trusted here; give its authority with --ca".into()
        }
        E::BadSignature => {
            "the broker's certificate is not signed with the key of the authority that it names; give its \
             authority of today with --ca"
                .into()
        }
        // The name of a case of rustls-webpki, which rustls does not export.
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the broker's certificate is that of an authority (CA:TRUE); give the broker one that is \
             issued by it (CA:FALSE)"
                .into()
        }
        other => format!("the broker's certificate cannot be used: {other}"),
    }
}

fn of_name(host: &str, names: &[String]) -> String {
    let wrong = format!("the broker's certificate is not for '{host}'");
    match names {
        [] => format!("{wrong}: it has no subject alternative name"),
        names => {
            let names: Vec<_> = names.iter().map(|it| bare(it)).collect();
            format!("{wrong}, but for {}; write such a name in the URL", names.join(", "))
        }
    }
}

/// `host` of `DnsName("host")`.
fn bare(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, name)| name.strip_suffix(')'));
    inside.unwrap_or(name).trim_matches('"')
}

/// Why the broker refused us; `None` for a fault of the broker or of the network, which may pass.
fn of_alert(alert: Alert) -> Option<&'static str> {
    Some(match alert {
        Alert::CertificateRequired | Alert::NoCertificate => {
            "the broker requires a client certificate; give --cert and --key"
        }
        Alert::HandshakeFailure | Alert::InsufficientSecurity => {
            "the broker refused the handshake: it may require a client certificate (give --cert and \
             --key), or another one, or ciphers that this program does not have"
        }
        Alert::UnknownCA => {
            "the broker does not trust the authority of the client certificate (--cert)"
        }
        Alert::CertificateExpired => {
            "the broker refused the client certificate (--cert): it has expired"
        }
        Alert::CertificateRevoked => {
            "the broker refused the client certificate (--cert): it is revoked"
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateUnknown
        | Alert::AccessDenied
        | Alert::DecryptError => {
            "the broker refused the client certificate (--cert); its log says why"
        }
        Alert::ProtocolVersion => {
            "the broker has no version of TLS that this program has, which are 1.2 and 1.3"
        }
        Alert::UnrecognisedName => "the broker has no certificate for the host in the URL",
        _ => return None,
    })
}
