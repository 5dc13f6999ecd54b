//! Why one end refused the other during TLS, in words that say what a person can do.

use std::io;

use rustls::{
    AlertDescription as Alert, CertificateError, Error, ExtendedKeyPurpose, PeerIncompatible,
};

use crate::model::tls_cause::{TlsCause, TlsFailure};

/// Why a person has to act on this failure of reading; `None` if it may pass. In TLS 1.3 the broker
/// checks our certificate after our side of the handshake is over, so that its refusal comes with the
/// next read.
pub(crate) fn refusal(error: &io::Error) -> Option<TlsFailure> {
    match tls_error(error)? {
        Error::InvalidCertificate(error) => {
            let (cause, text) = of_certificate(error);
            Some(TlsFailure::new(cause, format!("the broker's certificate {text}")))
        }
        Error::AlertReceived(alert) => {
            of_alert(*alert).map(|(cause, text)| TlsFailure::new(cause, text))
        }
        Error::PeerIncompatible(error) => {
            Some(TlsFailure::new(TlsCause::Incompatible, of_incompatible(error)))
        }
        _ => None,
    }
}

/// The same before the broker has answered in TLS.
pub(crate) fn refusal_before_tls(error: &io::Error) -> Option<TlsFailure> {
    let is_tls = !matches!(tls_error(error)?, Error::InvalidMessage(_));
    let text = "the answer is not TLS; for a port without it, write amqp:// in the URL";
    if is_tls { None } else { Some(TlsFailure::new(TlsCause::NotTls, text)) }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Why the broker's certificate did not pass. The text goes on after "the broker's certificate".
fn of_certificate(error: &CertificateError) -> (TlsCause, String) {
    use CertificateError as E;
    use TlsCause::{BadSignature, Expired, NotYetValid, UnknownIssuer, WrongName};
    let (cause, text) = match error {
        E::Expired | E::ExpiredContext { .. } => {
            (Expired, "has expired, or this machine's clock is wrong")
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            (NotYetValid, "is not valid yet, or this machine's clock is wrong")
        }
        E::NotValidForNameContext { expected, presented } => {
            return (WrongName, of_name(&expected.to_str(), presented));
        }
        E::NotValidForName => (WrongName, "is not for the host in the URL"),
        E::UnknownIssuer => (UnknownIssuer, "is not trusted here; give its authority with --ca"),
        E::BadSignature => (
            BadSignature,
            "is not signed with the key of the authority that it names; give its authority of today with \
             --ca",
        ),
        error => return of_unusable(error),
    };
    (cause, text.into())
}

/// Causes that only another certificate mends.
fn of_unusable(error: &CertificateError) -> (TlsCause, String) {
    use CertificateError as E;
    let text = match error {
        E::Other(other) => return of_webpki(other.0.downcast_ref(), other),
        E::InvalidPurposeContext { required: ExtendedKeyPurpose::ServerAuth, .. }
        | E::InvalidPurpose => {
            "is not one for servers; give the broker one with the extended key usage serverAuth"
        }
        E::BadEncoding => "is not correctly encoded; make it anew",
        E::UnhandledCriticalExtension => {
            "has a critical extension that this program does not know; make it without"
        }
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "is signed in a way that this program does not know; sign it with SHA-256 or better, and RSA, \
             ECDSA or Ed25519"
        }
        other => return (TlsCause::UnusableCertificate, unusable(other)),
    };
    (TlsCause::UnusableCertificate, text.into())
}

/// The causes for which rustls has no case of its own.
fn of_webpki(error: Option<&webpki::Error>, other: &dyn std::error::Error) -> (TlsCause, String) {
    use webpki::Error as E;
    let text = match error {
        Some(E::CaUsedAsEndEntity) => {
            let text = "is that of an authority (CA:TRUE); give the broker one that is issued by it \
                        (CA:FALSE)";
            return (TlsCause::IsAuthority, text.into());
        }
        Some(E::EndEntityUsedAsCa) => {
            "is issued by one that is not an authority's (CA:FALSE); make that with CA:TRUE"
        }
        Some(E::UnsupportedCertVersion) => {
            "is not of version 3 of X.509; make it with extensions, such as a subject alternative name"
        }
        Some(E::NameConstraintViolation) => "is for names that its authority may not issue",
        Some(E::PathLenConstraintViolated) => {
            "has more authorities above it than they allow (pathlen)"
        }
        _ => return (TlsCause::UnusableCertificate, unusable(other)),
    };
    (TlsCause::UnusableCertificate, text.into())
}

/// For what has no words of ours.
fn unusable(error: impl std::fmt::Display) -> String {
    format!("cannot be used ({error}); give the broker another one")
}

fn of_name(host: &str, names: &[String]) -> String {
    let wrong = format!("is not for '{host}'");
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

const NO_VERSION: &str =
    "the broker has no version of TLS that this program has, which are 1.2 and 1.3";

fn of_incompatible(error: &PeerIncompatible) -> &'static str {
    use PeerIncompatible as E;
    match error {
        E::ServerDoesNotSupportTls12Or13 | E::ServerTlsVersionIsDisabledByOurConfig => NO_VERSION,
        _ => {
            "the broker and this program have no way in common to sign or encrypt; let the broker use TLS \
             1.3, or its defaults"
        }
    }
}

/// Why the broker refused us; `None` for a fault of the broker or of the network, which may pass.
fn of_alert(alert: Alert) -> Option<(TlsCause, &'static str)> {
    Some(match alert {
        Alert::CertificateRequired | Alert::NoCertificate => (
            TlsCause::ClientCertificateRequired,
            "the broker requires a client certificate; give --cert and --key",
        ),
        Alert::HandshakeFailure => (
            TlsCause::HandshakeRefused,
            "the broker refused the handshake: it may require a client certificate (give --cert and \
             --key), or another one, or ciphers that this program does not have",
        ),
        Alert::InsufficientSecurity => {
            (TlsCause::Incompatible, "the broker requires ciphers that this program does not have")
        }
        Alert::ProtocolVersion => (TlsCause::Incompatible, NO_VERSION),
        Alert::UnrecognisedName => {
            (TlsCause::WrongName, "the broker has no certificate for the host in the URL")
        }
        other => (TlsCause::ClientCertificateRefused, of_client_certificate(other)?),
    })
}

fn of_client_certificate(alert: Alert) -> Option<&'static str> {
    Some(match alert {
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
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    fn refusal_of(error: Error) -> TlsFailure {
        refusal(&io::Error::new(io::ErrorKind::InvalidData, error)).expect("a refusal")
    }

    #[test]
    fn a_certificate_that_does_not_pass_has_a_cause_and_what_to_do() {
        use CertificateError as E;
        let other = |error| E::Other(OtherError(Arc::new(error)));
        for (error, cause, wanted) in [
            (E::Expired, TlsCause::Expired, "has expired, or"),
            (E::NotValidYet, TlsCause::NotYetValid, "is not valid yet, or"),
            (E::NotValidForName, TlsCause::WrongName, "is not for the host"),
            (E::UnknownIssuer, TlsCause::UnknownIssuer, "--ca"),
            (E::BadSignature, TlsCause::BadSignature, "is not signed with the key"),
            (other(webpki::Error::CaUsedAsEndEntity), TlsCause::IsAuthority, "(CA:TRUE)"),
            (other(webpki::Error::EndEntityUsedAsCa), TlsCause::UnusableCertificate, "CA:FALSE"),
            (other(webpki::Error::UnsupportedCertVersion), TlsCause::UnusableCertificate, "X.509"),
            (E::InvalidPurpose, TlsCause::UnusableCertificate, "serverAuth"),
            (E::BadEncoding, TlsCause::UnusableCertificate, "make it anew"),
            (E::Revoked, TlsCause::UnusableCertificate, "give the broker another one"),
        ] {
            let failure = refusal_of(Error::InvalidCertificate(error));
            assert_eq!(failure.cause, cause, "{failure:?}");
            let begins = failure.text.starts_with("the broker's certificate ");
            assert!(begins && failure.text.contains(wanted), "{failure:?}");
        }
    }

    #[test]
    fn a_broker_without_a_version_of_ours_is_incompatible_by_its_alert_and_by_its_answer() {
        let answer = Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13);
        for error in [answer, Error::AlertReceived(Alert::ProtocolVersion)] {
            let failure = refusal_of(error);
            assert_eq!(failure, TlsFailure::new(TlsCause::Incompatible, NO_VERSION));
        }
    }
}
