//! Tokens (Docker's token authentication, "distribution/spec/auth/token"): asked for when a registry says 401, kept by
//! server and repository, asked for again when they have expired, be it in the middle of a pull.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::task;

use super::challenge::{Challenge, challenges};
use super::endpoint::Endpoint;
use super::named::Named;
use super::{Credential, RegistryError, Session};
use crate::net::{Answer, NetError, Request, is_loopback};

/// How often one request may be answered 401: an expired token, its renewal, a scope that was too small.
const RENEWALS_MAX: usize = 3;
const TOKEN_MAX: u64 = 1 << 20;
const CLIENT_ID: &str = "dvrun";

/// What is known to be accepted, by base URL and repository.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), Accepted>>);

#[derive(Clone)]
struct Accepted {
    /// The `Authorization` header.
    value: HeaderValue,
    /// What it was asked for, the newest first: a larger token has to be good for all of it.
    scopes: Vec<String>,
}

/// A token server's answer: the two names are both in use.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    Repository(Named<'a>),
    /// A repository to push to, and another of the same registry to take blobs from.
    Push {
        reference: Named<'a>,
        from: Option<&'a str>,
    },
    /// The registry itself, by its name: whether one may log in there.
    Registry(&'a str),
}

impl Subject<'_> {
    /// Empty for the registry itself.
    fn repository(&self) -> &str {
        match self {
            Subject::Repository(reference) | Subject::Push { reference, .. } => reference.repository(),
            Subject::Registry(_) => "",
        }
    }

    /// What to ask for where a challenge does not say it.
    fn scope(&self) -> String {
        match self {
            Subject::Repository(reference) => format!("repository:{}:pull", reference.repository()),
            Subject::Push { reference, .. } => format!("repository:{}:pull,push", reference.repository()),
            Subject::Registry(_) => String::new(),
        }
    }

    /// What no challenge says, since it is not asked for it: a registry takes a blob from where one may read.
    fn also(&self) -> Option<String> {
        match self {
            Subject::Push { from: Some(from), .. } => Some(format!("repository:{from}:pull")),
            _ => None,
        }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Subject::Repository(reference) | Subject::Push { reference, .. } => reference.to_string(),
            Subject::Registry(host) => (*host).to_owned(),
        }
    }
}

/// A request's permission to be tried again with a new token.
pub(super) struct Authorization<'a> {
    endpoint: &'a Endpoint,
    subject: Subject<'a>,
    used: Option<HeaderValue>,
    renewals: usize,
}

impl<'a> Authorization<'a> {
    pub(super) fn new(endpoint: &'a Endpoint, subject: Subject<'a>) -> Authorization<'a> {
        Authorization {
            endpoint,
            subject,
            used: None,
            renewals: 0,
        }
    }

    fn key(&self) -> (String, String) {
        (self.endpoint.base.to_string(), self.subject.repository().to_owned())
    }

    /// The request with what is known to be accepted.
    pub(super) async fn sign(&mut self, session: &Session<'_>, request: &Request) -> Request {
        let tokens = session.tokens.0.lock().await;
        self.used = tokens.get(&self.key()).map(|accepted| accepted.value.clone());
        match &self.used {
            Some(value) => request.clone().header(AUTHORIZATION, value.clone()),
            None => request.clone(),
        }
    }

    /// After a refusal: whether there is something new to try with.
    pub(super) async fn renew(&mut self, session: &Session<'_>, status: StatusCode, headers: &HeaderMap) -> Result<bool, RegistryError> {
        let mut offered = challenges(headers);
        let scope_too_small =
            |challenge: &Challenge| matches!(challenge, Challenge::Bearer { error: Some(error), .. } if error == "insufficient_scope");
        let can_help = status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && offered.iter().any(scope_too_small));
        if !can_help || self.renewals == RENEWALS_MAX {
            return Ok(false);
        }
        self.renewals += 1;
        // Held while a token is fetched: downloads that fail together need only one.
        let mut tokens = session.tokens.0.lock().await;
        let known = tokens.get(&self.key());
        if known.map(|accepted| &accepted.value) != self.used.as_ref() {
            return Ok(true);
        }
        let earlier = known.map(|accepted| accepted.scopes.clone()).unwrap_or_default();
        if offered.is_empty() {
            // gcr.io leaves the header out on some requests.
            let ping = Request::get(self.endpoint.ping()?);
            let answer = session
                .client
                .read(&ping, TOKEN_MAX, session.progress)
                .await
                .map_err(|error| self.error(error))?;
            offered = challenges(&answer.headers);
        }
        let credential = self.credential(session).await?;
        for challenge in offered {
            let mut scopes = Vec::new();
            let value = match (challenge, &credential) {
                (Challenge::Bearer { realm, service, scope, .. }, _) => {
                    let newest = scope.unwrap_or_else(|| self.subject.scope());
                    scopes = self.scopes(&newest, &earlier);
                    let asked = Asked {
                        realm: &realm,
                        service: service.as_deref(),
                        scopes: &scopes,
                    };
                    self.token(session, &asked, credential.as_ref()).await?
                }
                (Challenge::Basic, Some(Credential::Password { user, password })) => Some(basic(user, password)),
                (Challenge::Basic, _) => None,
            };
            // The same again would be refused again.
            if let Some(value) = value.filter(|value| Some(value) != self.used.as_ref()) {
                tokens.insert(self.key(), Accepted { value, scopes });
                return Ok(true);
            }
        }
        tokens.remove(&self.key());
        Ok(false)
    }

    /// What a challenge asks for, before what was granted earlier: some servers read only the first.
    fn scopes(&self, newest: &str, earlier: &[String]) -> Vec<String> {
        let mut scopes: Vec<String> = newest.split_terminator(' ').map(str::to_owned).collect();
        for old in earlier.iter().cloned().chain(self.subject.also()) {
            if !scopes.iter().any(|scope| covers(scope, &old)) {
                scopes.push(old);
            }
        }
        scopes
    }

    /// On a thread of its own: a credential helper may ask a key ring, or a person.
    async fn credential(&self, session: &Session<'_>) -> Result<Option<Credential>, RegistryError> {
        let (credentials, host, repository) = (
            session.credentials.clone(),
            self.endpoint.host.clone(),
            self.subject.repository().to_owned(),
        );
        let found = task::spawn_blocking(move || credentials.find(&host, &repository)).await;
        found.expect("the thread neither panics nor is cancelled")
    }

    /// A token from `realm`; `None` where credentials would be needed that there are not.
    async fn token(
        &self,
        session: &Session<'_>,
        asked: &Asked<'_>,
        credential: Option<&Credential>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let Some(realm) = Url::parse(asked.realm).ok().filter(|url| self.may_ask(url)) else {
            return Ok(None);
        };
        if let Some(Credential::IdentityToken(identity)) = credential {
            let form = [
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", identity),
            ];
            let answer = self.post(session, &realm, asked, &form).await?;
            // Servers without OAuth2 take the same token by GET.
            if !matches!(answer.status.as_u16(), 404 | 405) {
                return self.bearer(answer).map(Some);
            }
        }
        let mut url = realm;
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(asked.service.map(|service| ("service", service)));
            query.extend_pairs(asked.scopes.iter().map(|scope| ("scope", scope)));
            query.extend_pairs(credential.map(|_| ("client_id", CLIENT_ID)));
        }
        let mut request = Request::get(url);
        match credential {
            Some(Credential::Password { user, password }) => request = request.header(AUTHORIZATION, basic(user, password)),
            Some(Credential::IdentityToken(identity)) => request = request.header(AUTHORIZATION, basic("<token>", identity)),
            None => {}
        }
        let answer = session.client.read(&request, TOKEN_MAX, session.progress).await;
        self.bearer(answer.map_err(|error| self.error(error))?).map(Some)
    }

    async fn post(&self, session: &Session<'_>, realm: &Url, asked: &Asked<'_>, form: &[(&str, &str)]) -> Result<Answer, RegistryError> {
        let scope = asked.scopes.join(" ");
        // A query is a form's encoding.
        let mut encoded = Url::parse("http://form/").expect("a URL");
        encoded
            .query_pairs_mut()
            .extend_pairs(form)
            .extend_pairs(asked.service.map(|service| ("service", service)))
            .extend_pairs((!scope.is_empty()).then_some(("scope", scope.as_str())));
        let mut request = Request::get(realm.clone()).header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request.method = Method::POST;
        request.body = encoded.query().map(|query| Bytes::copy_from_slice(query.as_bytes()));
        let answer = session.client.read(&request, TOKEN_MAX, session.progress).await;
        answer.map_err(|error| self.error(error))
    }

    fn bearer(&self, answer: Answer) -> Result<HeaderValue, RegistryError> {
        if !answer.status.is_success() {
            return Err(self.error(answer.refused()));
        }
        let wrong = || RegistryError::TokenFormat {
            host: self.endpoint.host.clone(),
            image: self.image(),
        };
        let TokenAnswer { token, access_token } = serde_json::from_slice(&answer.body).map_err(|_| wrong())?;
        let given = [token, access_token].into_iter().flatten().find(|token| !token.is_empty());
        let mut value = HeaderValue::from_str(&format!("Bearer {}", given.ok_or_else(wrong)?)).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Secrets go over TLS only, but to a registry that speaks plain HTTP itself.
    fn may_ask(&self, realm: &Url) -> bool {
        match realm.scheme() {
            "https" => true,
            "http" => self.endpoint.base.scheme() == "http" || realm.host_str().is_some_and(is_loopback),
            _ => false,
        }
    }

    fn error(&self, source: NetError) -> RegistryError {
        let host = self.endpoint.host.clone();
        match source.refusal() {
            Some(_) => RegistryError::net("a token", self.image(), &host, source),
            None => RegistryError::Token {
                host,
                image: self.image(),
                source: Box::new(source),
            },
        }
    }

    fn image(&self) -> String {
        self.subject.name()
    }
}

/// A question to a token server.
struct Asked<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scopes: &'a [String],
}

/// Whether what `scope` (`repository:lab/x:pull,push`) grants has all of `other` in it.
fn covers(scope: &str, other: &str) -> bool {
    let split = |scope: &str| scope.rsplit_once(':').map(|(what, actions)| (what.to_owned(), actions.to_owned()));
    match (split(scope), split(other)) {
        (Some((what, actions)), Some((same, wanted))) if what == same => {
            wanted.split(',').all(|wanted| actions.split(',').any(|action| action == wanted))
        }
        _ => scope == other,
    }
}

/// `user:password` as RFC 7617 has it.
fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).expect("base64 is a header value");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Reference;

    #[test]
    fn scopes_that_are_granted_stay_and_the_newest_is_first() {
        let reference: Reference = "h.example/lab/x".parse().unwrap();
        let endpoint = Endpoint {
            base: "https://h.example/".parse().unwrap(),
            host: "h.example".to_owned(),
        };
        let of = |from, newest: &str, earlier: &[&str]| {
            let subject = Subject::Push {
                reference: Named::image(&reference),
                from,
            };
            let earlier: Vec<String> = earlier.iter().map(|scope| (*scope).to_owned()).collect();
            Authorization::new(&endpoint, subject).scopes(newest, &earlier).join(" ")
        };
        let (pull, push, other) = ("repository:lab/x:pull", "repository:lab/x:pull,push", "repository:lab/y:pull");
        assert_eq!(of(None, push, &[pull]), push);
        assert_eq!(of(None, pull, &[push]), format!("{pull} {push}"));
        assert_eq!(of(Some("lab/y"), push, &[]), format!("{push} {other}"));
        assert_eq!(of(Some("lab/y"), push, &[pull, other]), format!("{push} {other}"));
        assert_eq!(of(None, "*", &["*"]), "*");
        assert_eq!(of(None, "", &[]), "");
    }

    #[test]
    fn secrets_go_over_tls_or_where_all_is_plain() {
        let reference: Reference = "h.example/x".parse().unwrap();
        let may = |base: &str, realm: &str| {
            let endpoint = Endpoint {
                base: base.parse().unwrap(),
                host: "h.example".to_owned(),
            };
            Authorization::new(&endpoint, Subject::Repository(Named::image(&reference))).may_ask(&realm.parse().unwrap())
        };
        assert!(may("https://h.example/", "https://auth.example/token"));
        assert!(!may("https://h.example/", "http://auth.example/token"));
        assert!(may("http://h.example/", "http://auth.example/token"));
        assert!(may("https://h.example/", "http://127.0.0.1:5001/token"));
        assert!(!may("http://h.example/", "ftp://auth.example/token"));
        let header = basic("ada", "hush");
        assert_eq!(header, "Basic YWRhOmh1c2g=");
        assert!(!format!("{header:?}").contains("YWRh"), "marked as a secret");
    }
}
