//! Splits an AMQP URL into its parts. Pure; no error shows a part, because it may hold a password.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use crate::model::error::Error;

/// The parts of a URL, as they stand there: not decoded, and not checked but for the host and the
/// port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UrlParts<'a> {
    pub(crate) scheme: &'a str,
    /// The user, and the password if the URL has one.
    pub(crate) login: Option<(&'a str, Option<&'a str>)>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) vhost: &'a str,
    pub(crate) query: &'a str,
}

impl<'a> UrlParts<'a> {
    pub(crate) fn of(url: &'a str) -> Result<UrlParts<'a>, Error> {
        let Some((scheme, rest)) = url.split_once("://") else {
            let begins = |scheme: &&str| url.len() >= scheme.len() && is_scheme(url, scheme);
            let is_cut = ["amqp:", "amqps:"].iter().any(begins);
            let what = if is_cut { "// is missing after the scheme" } else { SCHEMES };
            return Err(invalid(what));
        };
        refuse_misplaced_login(rest)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (login, address) = match authority.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, authority),
        };
        let (host, port) = host_and_port(address)?;
        if host.is_none() && !authority.is_empty() {
            return Err(invalid("the host is missing"));
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Ok(UrlParts {
            scheme,
            login: login.map(user_and_password),
            host,
            port,
            vhost: path.trim_start_matches('/'),
            query,
        })
    }

    /// The parameters of the query, decoded. A `+` is no blank, as in RabbitMQ.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = Result<(String, String), Error>> {
        let parameters = self.query.split('&').filter(|parameter| !parameter.is_empty());
        parameters.map(|parameter| {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            Ok((decoded(key, "name of a parameter")?, decoded(value, "value of a parameter")?))
        })
    }
}

pub(crate) const SCHEMES: &str = "the scheme is neither amqp:// nor amqps://";

fn is_scheme(url: &str, scheme: &str) -> bool {
    url.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
}

/// Refuses a URL in which a part of the login would be read as a port or a virtual host: logs show
/// those.
fn refuse_misplaced_login(rest: &str) -> Result<(), Error> {
    if rest.contains('#') {
        return Err(invalid("a # must be written as %23"));
    }
    if rest.starts_with('/') && rest.contains('@') {
        return Err(invalid(
            "write two slashes after the scheme, not three; in the virtual host, write @ as %40",
        ));
    }
    if rest.split_once(['/', '?']).is_some_and(|(_, after)| after.contains('@')) {
        return Err(invalid("an @ after a / or a ? must be written as %40"));
    }
    Ok(())
}

fn user_and_password(login: &str) -> (&str, Option<&str>) {
    match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    }
}

fn host_and_port(address: &str) -> Result<(Option<String>, Option<u16>), Error> {
    if let Some((host, port)) = address.strip_prefix('[').and_then(|it| it.split_once(']')) {
        let Ok(host) = host.parse::<Ipv6Addr>() else {
            return Err(invalid("the host in [ ] is no IPv6 address"));
        };
        return Ok((Some(host.to_string()), number(port)?));
    }
    let (host, port) = address.split_at(address.find(':').unwrap_or(address.len()));
    let host = decoded(host, "host")?;
    let is_of_a_host = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
    if !host.chars().all(is_of_a_host) {
        return Err(invalid(
            "the host has a character that no host name has; write an international name in its \
             form with xn--",
        ));
    }
    Ok((Some(host).filter(|host| !host.is_empty()), number(port)?))
}

/// The port after its colon. As in RFC 3986, it may be missing there.
fn number(port: &str) -> Result<Option<u16>, Error> {
    let refused = "the port is no number up to 65535; write an IPv6 address in [ ], and a / in a \
                   password as %2F";
    if port.is_empty() || port == ":" {
        return Ok(None);
    }
    let digits = port.strip_prefix(':').filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|it| it.parse().ok()).map(Some).ok_or_else(|| invalid(refused))
}

pub(crate) fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidUrl { reason: reason.into() }
}

/// The text without its percent-encoding.
pub(crate) fn decoded(text: &str, what: &str) -> Result<String, Error> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| invalid(format!("the {what} is not UTF-8")))?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> UrlParts<'_> {
        UrlParts::of(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn every_part_is_found_and_none_is_required() {
        let all = parts("AMQPS://u:p:w@[0:0::1]:5673//v?a=1&b=x%26y&&c&d=e=f&g=+");
        assert_eq!((all.scheme, all.login), ("AMQPS", Some(("u", Some("p:w")))));
        assert_eq!((all.host.as_deref(), all.port, all.vhost), (Some("::1"), Some(5673), "v"));
        let parameters: Vec<_> = all.parameters().map(|it| it.expect("UTF-8")).collect();
        let wanted = [("a", "1"), ("b", "x&y"), ("c", ""), ("d", "e=f"), ("g", "+")];
        assert_eq!(parameters, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));

        let none =
            UrlParts { scheme: "amqp", login: None, host: None, port: None, vhost: "", query: "" };
        assert_eq!(parts("amqp://"), none);
        assert_eq!(parts("amqp:///"), none);
        let only = |url| {
            let it = parts(url);
            (it.login, it.host, it.port, it.vhost, it.query)
        };
        let h = || Some("h".to_owned());
        assert_eq!(only("amqp://h"), (None, h(), None, "", ""));
        assert_eq!(only("amqp://%68:"), (None, h(), None, "", ""));
        assert_eq!(only("amqp://u@h:1"), (Some(("u", None)), h(), Some(1), "", ""));
        assert_eq!(only("amqp://:@h/%2f"), (Some(("", Some(""))), h(), None, "%2f", ""));
        assert_eq!(only("amqp://a@b:c@h"), (Some(("a@b", Some("c"))), h(), None, "", ""));
        assert_eq!(only("amqp://h?x=/"), (None, h(), None, "", "x=/"));
        assert_eq!(only("amqp:///v/w"), (None, None, None, "v/w", ""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, wanted) in [
            ("", SCHEMES),
            ("localhost:5672", SCHEMES),
            ("amqp:h", "// is missing after the scheme"),
            ("AmqpS:/h", "// is missing after the scheme"),
            ("amqp://h#", "a # must be written as %23"),
            ("amqp:///u:p@h", "write two slashes after the scheme, not three"),
            ("amqp://u:p/w@h", "an @ after a / or a ?"),
            ("amqp://u@", "the host is missing"),
            ("amqp://:5672", "the host is missing"),
            ("amqp://h h", "a character that no host name has"),
            ("amqp://h%2Fh", "a character that no host name has"),
            ("amqp://müller", "with xn--"),
            ("amqp://[::1", "a character that no host name has"),
            ("amqp://[h]", "no IPv6 address"),
            ("amqp://[::1%25eth0]", "no IPv6 address"),
            ("amqp://[::1]x", "no number up to 65535"),
            ("amqp://::1", "write an IPv6 address in [ ]"),
            ("amqp://h:65536", "no number up to 65535"),
            ("amqp://h:+1", "no number up to 65535"),
            ("amqp://u:p", "a / in a password as %2F"),
        ] {
            let error = UrlParts::of(url).expect_err(url).to_string();
            assert!(error.contains(wanted), "{url}: {error}");
        }
        let parts = parts("amqp://h?%ff=1");
        assert!(parts.parameters().any(|it| it.is_err()));
    }
}
