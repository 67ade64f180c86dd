//! Requests: one client, bounded connections, redirects followed by hand, tries repeated.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, NoProxy, Response, StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backoff::{delay, is_transient, retry_after};
use super::tls::{self, HostTls};
use super::url::same_origin;
use super::{Event, NetError, Options, Progress, Refusal, redact};

const REDIRECTS_MAX: usize = 10;
/// How often a host that cannot be connected to is tried.
const UNREACHABLE_MAX: u32 = 3;
/// How much of an error's body is read.
const REFUSAL_MAX: u64 = 64 << 10;

/// The one way to the network; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: Pair,
    options: Arc<Options>,
    permits: Arc<Semaphore>,
    /// By host and port, where TLS was spoken with.
    by_host: Arc<Mutex<HashMap<String, Pair>>>,
}

/// To receive and to send: who sends a large body gets no answer for as long as that takes, which reqwest would call a time-out.
#[derive(Clone, Debug)]
struct Pair {
    down: reqwest::Client,
    up: reqwest::Client,
}

/// What to ask for. An `Authorization` among the headers stays with the URL's own scheme, host and port.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    pub content: Content,
}

/// Whether the caller would notice an answer that somebody on the way has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but TLS protects it: a redirect must not leave TLS.
    Trusted,
    /// It is compared with a digest.
    Verified,
}

/// A whole answer, of any status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What answered, redacted.
    pub url: String,
    pub body: Bytes,
}

/// A response whose body is still to come; it counts as a connection until it is dropped.
pub(super) struct Reply {
    pub response: Response,
    pub url: String,
    _permit: OwnedSemaphorePermit,
}

impl Request {
    pub fn get(url: Url) -> Request {
        Request {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: None,
            content: Content::Trusted,
        }
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Request {
        self.headers.insert(name, value);
        self
    }
}

impl Answer {
    /// Whether it may be another one in a while.
    pub fn is_transient(&self) -> bool {
        is_transient(self.status)
    }

    /// The answer as an error.
    pub fn refused(self) -> NetError {
        NetError::Refused(Box::new(Refusal {
            url: self.url,
            status: self.status,
            headers: self.headers,
            body: self.body,
        }))
    }
}

impl Client {
    /// Reads the certificates that the options name for all hosts; asks nobody yet.
    pub fn new(options: Options) -> Result<Client, NetError> {
        let http = Pair::build(&options, &HostTls::default())?;
        let permits = Arc::new(Semaphore::new(options.connections.max(1)));
        Ok(Client {
            http,
            options: Arc::new(options),
            permits,
            by_host: Arc::default(),
        })
    }

    /// The client for the host of `url`: one of its own where that wants certificates of its own, so that no other host is
    /// shown them.
    fn http_for(&self, url: &Url) -> Result<Pair, NetError> {
        if url.scheme() != "https" {
            return Ok(self.http.clone());
        }
        let name = tls::names(url).swap_remove(0);
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(http) = by_host.get(&name) {
            return Ok(http.clone());
        }
        let found = tls::find(&self.options, url)?;
        let http = if found == HostTls::default() {
            self.http.clone()
        } else {
            Pair::build(&self.options, &found)?
        };
        by_host.insert(name, http.clone());
        Ok(http)
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The URL to ask instead of `url`, by the mirror rules; `url` itself where none fits.
    pub fn mirrored(&self, url: &str) -> String {
        let fitting = self.options.mirrors.iter().filter(|(prefix, _)| url.starts_with(prefix.as_str()));
        match fitting.max_by_key(|(prefix, _)| prefix.len()) {
            Some((prefix, replacement)) => format!("{replacement}{}", &url[prefix.len()..]),
            None => url.to_owned(),
        }
    }

    /// Sends a request, again where it may help, and reads its answer of at most `limit` bytes.
    ///
    /// Any status that stays after the last try is an answer; errors are what kept an answer from coming.
    pub async fn read(&self, request: &Request, limit: u64, progress: Progress<'_>) -> Result<Answer, NetError> {
        let mut failures = 0;
        loop {
            let result = match self.once(request).await {
                Ok(reply) => reply.read(limit).await,
                Err(error) => Err(error),
            };
            failures += 1;
            let wait = match &result {
                Ok(answer) if is_transient(answer.status) => self.wait_after(&answer.headers, failures),
                Err(error) if error.is_passing() => Some(self.delay(failures)),
                _ => None,
            };
            let attempts = self.attempts(result.as_ref().err());
            let Some(wait) = wait.filter(|_| failures < attempts) else {
                return result;
            };
            let why = match &result {
                Ok(answer) => answer.status.to_string(),
                Err(error) => reason(error),
            };
            pause(&redact(&request.url), &why, wait, progress).await;
        }
    }

    /// Sends a request once, through its redirects.
    pub(super) async fn once(&self, request: &Request) -> Result<Reply, NetError> {
        self.once_with(request, None).await
    }

    /// As [`Client::once`], with a body that is read while it is sent, in place of the request's.
    pub(super) async fn once_with(&self, request: &Request, mut stream: Option<reqwest::Body>) -> Result<Reply, NetError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let mut url = request.url.clone();
        let mut headers = request.headers.clone();
        for _ in 0..=REDIRECTS_MAX {
            let Pair { down, up } = self.http_for(&url)?;
            let http = if stream.is_some() { up } else { down };
            let mut builder = http.request(request.method.clone(), url.clone()).headers(headers.clone());
            if let Some(stream) = stream.take() {
                builder = builder.body(stream);
            } else if let Some(body) = &request.body {
                builder = builder.body(body.clone());
            }
            let response = builder.send().await.map_err(transport(&url))?;
            let Some(next) = redirect(request, &url, &response)? else {
                return Ok(Reply {
                    response,
                    url: redact(&url),
                    _permit: permit,
                });
            };
            // Object storage refuses a registry's token, and must not learn it either.
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(NetError::Redirects {
            url: redact(&request.url),
            limit: REDIRECTS_MAX,
        })
    }

    /// Whether `url`'s server speaks TLS, trusted or not. Asked once; a server that cannot be reached does not.
    pub async fn speaks_tls(&self, url: Url) -> bool {
        match self.once(&Request::get(url)).await {
            // What comes after the handshake is said in TLS, be it that a certificate of ours is missing.
            Err(NetError::Transport { source, .. }) => !source.is_connect() || is_certificate(&source),
            _ => true,
        }
    }

    /// How often to try in all after this failure. A host that is not there is often a name mistyped: who wrote it is
    /// told soon.
    pub(super) fn attempts(&self, error: Option<&NetError>) -> u32 {
        let unreachable = matches!(error, Some(NetError::Transport { source, .. }) if source.is_connect());
        let most = if unreachable { UNREACHABLE_MAX } else { u32::MAX };
        self.options.attempts.clamp(1, most)
    }

    /// How long to wait after so many failures, the last of them an answer with these headers; `None`: another try is not worth
    /// it, or not for so long.
    pub fn patience(&self, failures: u32, headers: &HeaderMap) -> Option<Duration> {
        self.wait_after(headers, failures).filter(|_| failures < self.attempts(None))
    }

    pub(super) fn delay(&self, failures: u32) -> Duration {
        delay(Duration::from_millis(self.options.backoff_ms), failures)
    }

    /// How long to wait after a transient status; `None`: longer than one should.
    pub(super) fn wait_after(&self, headers: &HeaderMap, failures: u32) -> Option<Duration> {
        match retry_after(headers, jiff::Timestamp::now()) {
            Some(wait) => (wait.as_secs() <= self.options.longest_wait).then_some(wait),
            None => Some(self.delay(failures)),
        }
    }
}

impl Pair {
    fn build(options: &Options, host: &HostTls) -> Result<Pair, NetError> {
        let patience = Duration::from_secs(options.read_timeout);
        Ok(Pair {
            down: build(options, host)?.read_timeout(patience).build().map_err(NetError::Setup)?,
            up: build(options, host)?.build().map_err(NetError::Setup)?,
        })
    }
}

/// A client with what the options say, and what `host` wants beside it.
fn build(options: &Options, host: &HostTls) -> Result<reqwest::ClientBuilder, NetError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(&options.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        // The environment is the command line's to read; it hands proxies over in the options.
        .no_proxy()
        .referer(false)
        .connect_timeout(Duration::from_secs(options.connect_timeout))
        .http2_adaptive_window(true)
        .http2_max_header_list_size(64 << 10);
    let for_all = HostTls {
        authorities: options.ca_certificates.clone(),
        identity: match host.identity {
            None => options.client_certificate.clone().map(|certificate| (certificate, None)),
            Some(_) => None,
        },
    };
    builder = tls::apply(tls::apply(builder, &for_all)?, host)?;
    let direct = options.proxy.none_for.as_deref().and_then(NoProxy::from_string);
    if let Some(url) = &options.proxy.http {
        let proxy = reqwest::Proxy::http(url).map_err(|_| proxy_error(url))?;
        builder = builder.proxy(proxy.no_proxy(direct.clone()));
    }
    if let Some(url) = &options.proxy.https {
        let proxy = reqwest::Proxy::https(url).map_err(|_| proxy_error(url))?;
        builder = builder.proxy(proxy.no_proxy(direct));
    }
    Ok(builder)
}

/// Says why, and waits.
pub(super) async fn pause(what: &str, why: &str, wait: Duration, progress: Progress<'_>) {
    progress(Event::Retrying { what, why, after: wait });
    tokio::time::sleep(wait).await;
}

impl Reply {
    /// The whole body, at most `limit` bytes of it.
    pub(super) async fn read(mut self, limit: u64) -> Result<Answer, NetError> {
        let refusal = !self.response.status().is_success();
        let limit = if refusal { REFUSAL_MAX } else { limit };
        let mut body = BytesMut::new();
        while let Some(chunk) = self.response.chunk().await.map_err(|source| NetError::Transport {
            url: self.url.clone(),
            source: source.without_url(),
        })? {
            let room = limit - body.len() as u64;
            if chunk.len() as u64 > room {
                if !refusal {
                    return Err(NetError::TooLong { url: self.url, limit });
                }
                body.extend_from_slice(&chunk[..room as usize]);
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status: self.response.status(),
            headers: std::mem::take(self.response.headers_mut()),
            url: self.url,
            body: body.freeze(),
        })
    }
}

/// Where a response sends the request on to, if it does.
fn redirect(request: &Request, url: &Url, response: &Response) -> Result<Option<Url>, NetError> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    if !moved || !matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION) else {
        return Ok(None);
    };
    let next = location.to_str().ok().and_then(|location| url.join(location).ok());
    match next.filter(|next| matches!(next.scheme(), "http" | "https")) {
        Some(next) if url.scheme() == "https" && next.scheme() == "http" && request.content == Content::Trusted => {
            Err(NetError::Downgrade {
                url: redact(url),
                to: redact(&next),
            })
        }
        Some(next) => Ok(Some(next)),
        None => Err(NetError::Redirect { url: redact(url) }),
    }
}

/// A certificate that is wrong now is wrong in a minute, too. rustls' errors are no part of reqwest's interface; the
/// word is in all that are about certificates, the server's (`invalid peer certificate`) or ours (`CertificateRequired`).
pub(super) fn is_certificate(error: &reqwest::Error) -> bool {
    says(error, "certificate")
}

/// Whether one of an error's causes says `word`, in capitals or not.
pub(super) fn says(error: &reqwest::Error, word: &str) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.to_string().to_ascii_lowercase().contains(word) {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The innermost cause: the one that says something (`connection refused`).
pub(super) fn reason(error: &NetError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn transport(url: &Url) -> impl FnOnce(reqwest::Error) -> NetError + use<> {
    let url = redact(url);
    // reqwest's own text would repeat the URL, query and all.
    move |source| NetError::Transport {
        url,
        source: source.without_url(),
    }
}

fn proxy_error(url: &str) -> NetError {
    NetError::Proxy(Url::parse(url).map_or_else(|_| "…".to_owned(), |url| redact(&url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mirror_rule_counts() {
        let rules = [
            ("https://a.example/", "http://127.0.0.1:1/"),
            ("https://a.example/deep/", "http://127.0.0.1:2/x/"),
        ];
        let options = Options {
            mirrors: rules
                .map(|(prefix, text)| (prefix.to_owned(), text.to_owned()))
                .into_iter()
                .collect(),
            ..Options::default()
        };
        let client = Client::new(options).unwrap();
        assert_eq!(client.mirrored("https://a.example/f"), "http://127.0.0.1:1/f");
        assert_eq!(client.mirrored("https://a.example/deep/f?q"), "http://127.0.0.1:2/x/f?q");
        assert_eq!(client.mirrored("https://b.example/deep/f"), "https://b.example/deep/f");
    }

    #[test]
    fn settings_with_mistakes_are_refused() {
        assert!(serde_json::from_str::<Options>(r#"{"mirror": {}}"#).is_err());
        let options = Options {
            ca_certificates: vec!["/nonexistent/ca.pem".into()],
            ..Options::default()
        };
        assert!(matches!(Client::new(options), Err(NetError::Io { .. })));
        let mut options = Options::default();
        options.proxy.https = Some("http://user:secret@:x".to_owned());
        let error = Client::new(options).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
