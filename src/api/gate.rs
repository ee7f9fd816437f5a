//! What a request that comes by a port has to show before anything of it is looked at. The kernel
//! does not tell who sends it, and any page that somebody on this machine opens in a browser can
//! send requests to a port of it, though not read the answers.

use super::caller::{Caller, Remote};
use super::error::ApiError;
use crate::daemon::address::is_loopback;
use crate::wire::quote::quote_bytes;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use std::net::IpAddr;

/// What a browser says of where a request comes from.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The scheme of a token, with the space after it.
const SCHEME: &[u8] = b"Bearer ";

/// Lets a request in, or says why not. The kernel knows who sends those of a Unix socket: all of
/// them are let in, to meet the rights.
///
/// # Errors
///
/// 403 for what a page of another site sends, 401 without the token where one is asked for, and
/// where none is, 421 for a request to another host.
pub fn admit(caller: &Caller, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let Remote::Port { is_open, .. } = caller.remote else {
        return Ok(());
    };
    refuse_other_sites(headers)?;
    match caller.token() {
        Some(token) => match given_token(headers) {
            Some(given) if token.is(given) => Ok(()),
            Some(_) => Err(unauthorized("the token is another")),
            None => Err(unauthorized("a token is asked for")),
        },
        // A reload has taken it away, and the port is as open as it was.
        None if is_open => Err(unauthorized("nobody is let in while no token is set")),
        None => require_this_host(uri, headers),
    }
}

/// Pages that this daemon serves may ask it; browsers say of all others whose they are. The answers
/// have no header by which a browser would show them to one.
fn refuse_other_sites(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(HOST).map(|host| [b"http://", host.as_bytes()].concat());
    let is_own =
        |origin: &[u8]| host.as_ref().is_some_and(|host| host.eq_ignore_ascii_case(origin));
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.find(|origin| !is_own(origin.as_bytes())) {
        let origin = quote_bytes(origin.as_bytes());
        return Err(forbidden(format!("pages of {origin} may not use this port")));
    }
    let mut sites = headers.get_all(FETCH_SITE).iter().map(|site| site.as_bytes());
    match sites.all(|site| site == b"same-origin" || site == b"none") {
        true => Ok(()),
        false => Err(forbidden("pages of other sites may not use this port")),
    }
}

/// The token that a request brings, once.
fn given_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

/// Refuses a request that names another host than this machine: somebody else's name that was made
/// to mean this machine, so that its pages are of the same site as this port.
fn require_this_host(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |what: String| {
        let message = format!(
            "{what}: without a token, this port answers requests to localhost, 127.0.0.1 and [::1] \
             alone; token-file in hermesd.toml lets others in"
        );
        Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, message).closing())
    };
    if let Some(authority) = uri.authority()
        && !is_this_host(authority.as_str().as_bytes())
    {
        return refuse(format!("the request is to {}", quote_bytes(authority.as_str().as_bytes())));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_this_host(host.as_bytes()) => Ok(()),
        (Some(host), None) => refuse(format!("the request is to {}", quote_bytes(host.as_bytes()))),
        _ => refuse("the request names no host, or several".to_owned()),
    }
}

/// Whether a host, with a port or without, can mean no other machine. Its port is not compared: one
/// that is forwarded is another.
fn is_this_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, port)) if port.is_empty() || port.starts_with(':') => name,
        Some(_) => return false,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(is_loopback)
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, message).closing()
}

fn unauthorized(why: &str) -> ApiError {
    let message = format!("{why}: send the header authorization: Bearer TOKEN");
    ApiError::new(StatusCode::UNAUTHORIZED, message).closing()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_this_host() {
        for host in [
            "localhost",
            "LocalHost:8000",
            "127.0.0.1",
            "127.0.0.1:9000",
            "127.1.2.3:80",
            "[::1]",
            "[::1]:8000",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_this_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":8000",
            "localhost.evil.org",
            "evil.org:8000",
            "localhost@evil.org",
            "127.0.0.1.evil.org",
            "127.0.0.1@evil.org:80",
            "192.168.1.5:8000",
            "0.0.0.0:8000",
            "[::]:8000",
            "2130706433",
        ] {
            assert!(!is_this_host(host.as_bytes()), "{host}");
        }
        assert!(!is_this_host(b"\xff"));
    }

    #[test]
    fn a_token_comes_once_and_as_a_bearers() {
        let given = |values: &[&str]| {
            let values = values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap()));
            given_token(&values.collect::<HeaderMap>()).map(<[u8]>::to_vec)
        };
        assert_eq!(given(&["Bearer abc"]), Some(b"abc".to_vec()));
        assert_eq!(given(&["bearer  abc "]), Some(b"abc".to_vec()));
        for wrong in [&[][..], &["abc"], &["Basic abc"], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(given(wrong), None, "{wrong:?}");
        }
    }
}
