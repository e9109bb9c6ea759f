//! Requests: redirects, the token, waits and retries.
//!
//! ureq's own redirects are off: the token goes to the endpoint alone, and where a redirect leads is looked at first.

use std::cell::Cell;
use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::refusal::{Subject, refusal};
use super::settings::Origin;
use super::{Event, Settings};
use crate::Error;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Largest answer that is read into memory: lists of files are far below.
const MAX_JSON: u64 = 32 << 20;

/// Why a request did not do.
pub(super) enum Trouble {
    /// Nobody answers: no name, no route, no listener.
    Unreachable(Error),
    /// It may do the next time, perhaps after a wait that the server asks for.
    Passing(Error, Option<Duration>),
    /// There is no such thing, and the server does not say which part of its name is wrong.
    Absent(Error),
    /// It will not do.
    Final(Error),
}

impl Trouble {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Unreachable(error) | Self::Passing(error, _) | Self::Absent(error) | Self::Final(error) => {
                error
            }
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// A result within a pull.
pub(super) type Tried<T> = std::result::Result<T, Trouble>;

/// Which redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// All that lead to places that the endpoint allows.
    Everywhere,
    /// Those on the endpoint itself: the answer before another host's has the Hub's own headers.
    Endpoint,
}

/// What to ask for.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) head: bool,
    pub(super) url: &'a str,
    /// First byte wanted.
    pub(super) from: u64,
    pub(super) follow: Follow,
    pub(super) subject: Subject<'a>,
}

/// A connection to one endpoint.
pub(super) struct Client<'a> {
    agent: Agent,
    pub(super) settings: &'a Settings,
    /// Whether the endpoint has answered: then a failing name server is a passing trouble.
    reached: Cell<bool>,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        let timeout = Some(settings.read_timeout);
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("semisep/", env!("CARGO_PKG_VERSION")))
            // Ranges and checksums are of the bytes as they are.
            .accept_encoding("identity")
            .timeout_resolve(Some(settings.connect_timeout))
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        if settings.endpoint.is_this_machine() {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), settings, reached: Cell::new(false) }
    }

    /// The answer to one request: any success, a redirect that is not followed, or 416. No retries.
    pub(super) fn send(&self, request: Request<'_>) -> Tried<Response<Body>> {
        let mut url = request.url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let (uri, origin) = self.allowed(&url, request.subject)?;
            let mut builder = if request.head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) =
                self.settings.token.as_ref().filter(|_| origin == *self.settings.endpoint.origin())
            {
                builder = builder.header("authorization", token.header());
            }
            if request.from > 0 {
                builder = builder.header("range", format!("bytes={}-", request.from));
            }
            let response = builder.call().map_err(|e| self.failed(&origin, &e))?;
            self.reached.set(true);
            let Some(location) = redirect(&response) else {
                return self.judged(response, &origin, request.subject);
            };
            let next =
                resolved(&uri, location).ok_or_else(|| self.odd("a redirect to an address that is none"))?;
            let (_, target) = self.allowed(&next, request.subject)?;
            if request.follow == Follow::Endpoint && target != *self.settings.endpoint.origin() {
                return Ok(response);
            }
            url = next;
        }
        let host = self.settings.endpoint.origin().host();
        Err(Error::new(format!(
            "{host} redirects more than {MAX_REDIRECTS} times for {}",
            request.subject.id
        ))
        .hint("see whether HF_ENDPOINT is right")
        .into())
    }

    /// The body of an answer as text, of a bounded size; retried.
    pub(super) fn text(&self, url: &str, subject: Subject<'_>, on: &mut dyn FnMut(Event)) -> Tried<String> {
        let request = Request { head: false, url, from: 0, follow: Follow::Everywhere, subject };
        self.retried(on, &mut || {
            let mut text = Vec::new();
            let body = self.send(request)?.into_body().into_reader();
            body.take(MAX_JSON + 1).read_to_end(&mut text).map_err(|e| self.broken(&e))?;
            if text.len() as u64 > MAX_JSON {
                return Err(self.odd("an answer that is larger than any list of files"));
            }
            String::from_utf8(text).map_err(|_| self.odd("an answer that is no text"))
        })
    }

    /// Repeats what fails for a passing reason, with longer and longer waits.
    pub(super) fn retried<T>(
        &self,
        on: &mut dyn FnMut(Event),
        attempt: &mut dyn FnMut() -> Tried<T>,
    ) -> Tried<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(trouble) => {
                    failures += 1;
                    self.pause(trouble, failures, on)?;
                }
            }
        }
    }

    /// Waits before another try, or gives the trouble back if there should be none.
    pub(super) fn pause(&self, trouble: Trouble, failures: u32, on: &mut dyn FnMut(Event)) -> Tried<()> {
        let (error, asked) = match trouble {
            Trouble::Passing(error, asked) => (error, asked),
            Trouble::Unreachable(error) if self.reached.get() => (error, None),
            other => return Err(other),
        };
        let settings = self.settings;
        if failures >= settings.attempts {
            let error = Error::new(format!("{error}, {failures} times in a row"));
            let hint = "try again later; what has come already is kept";
            return Err(Trouble::Passing(error.hint(hint), None));
        }
        if let Some(asked) = asked.filter(|asked| *asked > settings.longest_wait) {
            let error = Error::new(format!("{error} and asks to wait {} s", asked.as_secs()));
            let hint =
                "try again then; what has come already is kept. Signed in (HF_TOKEN) the limits are higher";
            return Err(Trouble::Passing(error.hint(hint), None));
        }
        let doubled = settings.backoff.saturating_mul(1 << (failures - 1).min(16));
        let wait = asked.unwrap_or(doubled).min(settings.longest_wait);
        on(Event::Note(format!("{error}; trying again in {:.1} s", wait.as_secs_f64())));
        std::thread::sleep(wait);
        Ok(())
    }

    /// A connection that broke, or fell silent.
    pub(super) fn broken(&self, error: &std::io::Error) -> Trouble {
        let host = self.settings.endpoint.origin().host();
        Trouble::Passing(Error::new(format!("the connection to {host} broke: {}", plain(error))), None)
    }

    fn odd(&self, what: &str) -> Trouble {
        let host = self.settings.endpoint.origin().host();
        let error = Error::new(format!("{host} gives {what}"));
        Trouble::Final(error.hint("see whether HF_ENDPOINT has the interface of the Hub"))
    }

    fn allowed(&self, url: &str, subject: Subject<'_>) -> Tried<(Uri, Origin)> {
        let uri: Option<Uri> = url.parse().ok();
        let parsed = uri.and_then(|uri| Some((Origin::of(&uri)?, uri)));
        match parsed {
            Some((origin, uri)) if self.settings.endpoint.allows(&origin) => Ok((uri, origin)),
            Some((origin, _)) => Err(Error::new(format!(
                "{} is redirected to {} without TLS, expected https",
                subject.id,
                origin.host()
            ))
            .hint("see whether HF_ENDPOINT is right")
            .into()),
            None => Err(self.odd("a redirect to an address that is none")),
        }
    }

    fn judged(
        &self,
        response: Response<Body>,
        origin: &Origin,
        subject: Subject<'_>,
    ) -> Tried<Response<Body>> {
        let (status, headers) = (response.status(), response.headers());
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let host = origin.host();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let error = Error::new(format!("{host} says too many requests (429)"));
            return Err(Trouble::Passing(error, retry_after(headers)));
        }
        if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
            return Err(Trouble::Passing(
                Error::new(format!("{host} answers {status}")),
                retry_after(headers),
            ));
        }
        // A file host refuses for reasons of its own, such as a signature that has expired.
        if origin != self.settings.endpoint.origin() {
            return Err(Trouble::Passing(Error::new(format!("{host} answers {status}")), None));
        }
        let error = refusal(status, headers, subject, self.settings);
        let unnamed = subject.file.is_none() && !headers.contains_key("x-error-code");
        Err(if status == StatusCode::NOT_FOUND && unnamed { Trouble::Absent(error) } else { error.into() })
    }

    fn failed(&self, origin: &Origin, error: &ureq::Error) -> Trouble {
        use std::io::ErrorKind as Kind;
        let host = origin.host();
        let unreachable = match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
            ureq::Error::Io(e) => {
                matches!(e.kind(), Kind::ConnectionRefused | Kind::NetworkUnreachable | Kind::HostUnreachable)
            }
            _ => false,
        };
        if unreachable {
            return Trouble::Unreachable(Error::new(format!("{host} cannot be reached: {}", plain(error))).hint(
                "check the connection and HF_ENDPOINT; with HF_HUB_OFFLINE=1 only models in the cache are looked for",
            ));
        }
        match error {
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Trouble::Passing(
                Error::new(format!("the connection to {host} broke: {}", plain(error))),
                None,
            ),
            _ => Trouble::Final(Error::new(format!(
                "the connection to {host} cannot be made: {}",
                plain(error)
            ))),
        }
    }
}

/// One line without addresses: those of file hosts hold signatures.
fn plain(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let words = text.split_whitespace().map(|word| if word.contains("://") { "(address)" } else { word });
    words.take(40).collect::<Vec<_>>().join(" ")
}

/// Where a redirect leads to.
fn redirect(response: &Response<Body>) -> Option<&str> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    Some(response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or_default())
}

/// A location as seen from an address.
fn resolved(base: &Uri, location: &str) -> Option<String> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    if location.is_empty() {
        return None;
    }
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.into());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    (!location.contains("://")).then(|| format!("{scheme}://{authority}{folder}/{location}"))
}

/// The wait that a server asks for, in seconds. Dates are passed over: the usual wait does.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://hub.example/a/b?x=1".parse().unwrap();
        let to = |location: &str| resolved(&base, location);
        assert_eq!(to("/c?y"), Some("https://hub.example/c?y".into()));
        assert_eq!(to("c"), Some("https://hub.example/a/c".into()));
        assert_eq!(to("//cdn.example/c"), Some("https://cdn.example/c".into()));
        assert_eq!(to("http://cdn.example/c"), Some("http://cdn.example/c".into()));
        assert_eq!(to("file:///etc/passwd"), None);
        assert_eq!(to(""), None);
    }

    #[test]
    fn errors_do_not_repeat_addresses() {
        assert_eq!(plain(&"at https://cdn/x?Signature=s\nend"), "at (address) end");
    }
}
