//! The environment variables of `huggingface_hub`, and what there is besides them.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::Uri;

use crate::{Error, Result};

/// Where the Hub is if `HF_ENDPOINT` does not say.
const HUB: &str = "https://huggingface.co";
/// Longest token file that is read.
const MAX_TOKEN: usize = 4096;

/// Everything that a pull depends on besides the model's name.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server.
    pub endpoint: Endpoint,
    /// The folder with the models.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Take what is in the cache, and connect to nothing.
    pub offline: bool,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes.
    pub read_timeout: Duration,
    /// Tries in a row that may fail without a megabyte gained between them.
    pub attempts: u32,
    /// Wait after the first failure; doubled by each that follows.
    pub backoff: Duration,
    /// Longest wait, also where a server asks for a longer one.
    pub longest_wait: Duration,
}

impl Settings {
    /// From this process's environment.
    ///
    /// # Errors
    /// If a variable has a value that cannot be used; the value of a token is not repeated.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// From these variables: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, and `SEMISEP_ALLOW_HTTP` for endpoints without TLS on other machines.
    ///
    /// # Errors
    /// As for [`from_env`](Self::from_env).
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let switch = |name: &str| text(name).is_some_and(|value| is_true(&value));
        let home = match (variable("HF_HOME"), variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(home), _, _) => expanded(home, variable),
            (None, Some(cache), _) => PathBuf::from(cache).join("huggingface"),
            (None, None, Some(user)) => PathBuf::from(user).join(".cache/huggingface"),
            (None, None, None) => {
                return Err(
                    Error::new("there is no home folder to keep models in").hint("set HF_HOME to a folder")
                );
            }
        };
        let cache =
            variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), |path| expanded(path, variable));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| HUB.into());
        let endpoint =
            Endpoint::new(&endpoint, switch("SEMISEP_ALLOW_HTTP")).map_err(|e| e.prefixed("HF_ENDPOINT"))?;
        let read_timeout = match text("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => 30.0,
            Some(value) => {
                let seconds = value.parse().ok().filter(|s| (0.001..=86400.0).contains(s));
                seconds.ok_or_else(|| {
                    Error::new(format!("HF_HUB_DOWNLOAD_TIMEOUT: expected seconds, found {value:?}"))
                })?
            }
        };
        let token_file =
            variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), |p| expanded(p, variable));
        Ok(Self {
            endpoint,
            cache: std::path::absolute(&cache).map_err(|e| Error::at(&cache, e))?,
            token: match text("HF_TOKEN") {
                Some(token) => Token::new(&token).map_err(|e| e.prefixed("HF_TOKEN"))?,
                None => Token::read(&token_file)?,
            },
            offline: switch("HF_HUB_OFFLINE"),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs_f64(read_timeout),
            attempts: 5,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// `~` as the shell has it.
fn expanded(path: OsString, variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = PathBuf::from(path);
    match (path.strip_prefix("~"), variable("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// A token of the Hub; its value is printed nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in this text, `None` if it is blank.
    ///
    /// # Errors
    /// If it holds what no token and no header can hold.
    pub fn new(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.len() > MAX_TOKEN {
            return Err(Error::new(
                "expected a token, found spaces, line breaks or other bytes that none has",
            )
            .hint("copy the token again, as one word"));
        }
        Ok((!text.is_empty()).then(|| Self(text.into())))
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::new(&text).map_err(|e| e.in_file(path)),
            // Without a token most models are there.
            Err(_) => Ok(None),
        }
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The address of a server with the Hub's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    origin: Origin,
    allow_http: bool,
}

/// Scheme, host and port: what a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { https, host, port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    fn is_this_machine(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Endpoint {
    /// The server at this address. Without TLS only on this machine, or if `allow_http` asks for it: what comes could be
    /// read and changed on its way, the token too.
    ///
    /// # Errors
    /// If it is no such address.
    pub fn new(url: &str, allow_http: bool) -> Result<Self> {
        let url = url.trim().trim_end_matches('/');
        // Not repeated if it may hold a password.
        let shown = if url.contains('@') { "an address with a password" } else { url };
        let wrong = || Error::new(format!("expected an address such as {HUB}, found {shown:?}"));
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let origin = Origin::of(&uri).ok_or_else(wrong)?;
        if url.contains(['@', '?', '#']) {
            return Err(wrong());
        }
        let endpoint = Self { url: url.into(), origin, allow_http };
        if !endpoint.allows(&endpoint.origin) {
            return Err(Error::new(format!("expected https, found {url}"))
                .hint("without TLS anyone on the way reads the token; SEMISEP_ALLOW_HTTP=1 allows it"));
        }
        Ok(endpoint)
    }

    /// The address, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether a request may go there: over TLS to everywhere; without it, from a server on this machine to this machine.
    pub(super) fn allows(&self, target: &Origin) -> bool {
        target.https
            || self.allow_http
            || (!self.origin.https && self.is_this_machine() && target.is_this_machine())
    }

    /// Whether the server is on this machine, where no proxy leads.
    pub(super) fn is_this_machine(&self) -> bool {
        self.origin.is_this_machine()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Settings::from_variables(&find)
    }

    #[test]
    fn the_cache_is_pythons() {
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache.display().to_string();
        let home = ("HOME", "/u");
        assert_eq!(cache(&[home]), "/u/.cache/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), "/h/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "~/h")]), "/u/h/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert!(settings(&[]).unwrap_err().advice().unwrap().contains("HF_HOME"));
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_file_and_are_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        assert_eq!(settings(&[home]).unwrap().token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let header = |variables: &[(&str, &str)]| settings(variables).unwrap().token.unwrap().header();
        assert_eq!(header(&[home]), "Bearer hf_file");
        assert_eq!(header(&[home, ("HF_TOKEN", " hf_variable ")]), "Bearer hf_variable");
        let error = settings(&[home, ("HF_TOKEN", "hf_secret\nX-Evil: 1")]).unwrap_err();
        assert!(
            error.to_string().starts_with("HF_TOKEN") && !error.to_string().contains("secret"),
            "{error}"
        );
        let shown = format!("{:?}", settings(&[home, ("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn endpoints() {
        for good in [
            "https://huggingface.co/",
            "https://mirror.example:8443/hf",
            "http://127.0.0.1:9",
            "http://localhost",
        ] {
            assert!(Endpoint::new(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://huggingface.co",
            "http://127.0.0.1.evil.example",
            "ftp://a",
            "huggingface.co",
            "",
            "https://",
        ] {
            let error = settings(&[("HOME", "/u"), ("HF_ENDPOINT", bad)]).unwrap_err().to_string();
            assert!(error.starts_with("HF_ENDPOINT: expected"), "{bad}: {error}");
        }
        let error = Endpoint::new("https://user:hidden@a", false).unwrap_err().to_string();
        assert!(!error.contains("hidden"), "{error}");
        assert!(Endpoint::new("http://mirror.example", true).is_ok());
    }

    /// A redirect from the Hub must not reach into this machine, nor drop TLS.
    #[test]
    fn where_redirects_may_lead() {
        let to = |endpoint: &str, target: &str| {
            let target = Origin::of(&target.parse().unwrap()).unwrap();
            Endpoint::new(endpoint, false).unwrap().allows(&target)
        };
        assert!(to("https://huggingface.co", "https://cdn.example"));
        assert!(!to("https://huggingface.co", "http://cdn.example"));
        assert!(!to("https://huggingface.co", "http://127.0.0.1:80"));
        assert!(to("http://127.0.0.1:1", "http://localhost:2"));
        assert!(!to("http://127.0.0.1:1", "http://cdn.example"));
    }
}
