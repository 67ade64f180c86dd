//! A repository's tags.

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;

use super::auth::Subject;
use super::endpoint::Endpoint;
use super::named::Named;
use super::{RegistryError, Session};
use crate::net::Request;
use crate::oci::Reference;

/// The largest page that is read, in bytes.
const PAGE_MAX: u64 = 16 << 20;
const PAGES_MAX: usize = 1000;
/// How many tags are named to someone who asked for one that is not there.
const NEAR_MAX: usize = 5;

#[derive(Deserialize)]
struct Page {
    /// `null` where there are none.
    tags: Option<Vec<String>>,
}

/// All tags of the repository of `reference`, in the registry's order.
pub async fn tags(session: &Session<'_>, reference: &Reference) -> Result<Vec<String>, RegistryError> {
    let endpoints = session.endpoints(reference).await?;
    session
        .first_of(&endpoints, async |endpoint| all_pages(session, endpoint, reference).await)
        .await
}

async fn all_pages(session: &Session<'_>, endpoint: &Endpoint, reference: &Reference) -> Result<Vec<String>, RegistryError> {
    let mut tags = Vec::new();
    let mut url = endpoint.tags(reference.repository())?;
    for _ in 0..PAGES_MAX {
        let what = || "the list of tags".to_owned();
        let answer = session
            .authorized(
                endpoint,
                Subject::Repository(Named::image(reference)),
                &Request::get(url.clone()),
                PAGE_MAX,
                what,
            )
            .await?;
        let page: Page = serde_json::from_slice(&answer.body).map_err(|source| RegistryError::TagsFormat {
            image: format!("docker://{reference}"),
            source,
        })?;
        tags.extend(page.tags.unwrap_or_default());
        match next(&answer.headers, &url) {
            Some(following) => url = following,
            None => break,
        }
    }
    Ok(tags)
}

/// `Link: </v2/…?last=…>; rel="next"` (RFC 8288), on the same server only: the token goes with it.
fn next(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let text = headers.get(LINK)?.to_str().ok()?;
    let (target, parameters) = text.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters
        .split(';')
        .any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
    let following = url.join(target).ok().filter(|following| following.origin() == url.origin());
    following.filter(|following| is_next && following != url)
}

/// The tags that someone who wrote `tag` may have meant, the likeliest first.
pub(super) fn near(tag: &str, tags: Vec<String>) -> Vec<String> {
    let mut rated: Vec<(f64, String)> = tags.into_iter().map(|other| (strsim::jaro_winkler(tag, &other), other)).collect();
    rated.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    rated.into_iter().take(NEAR_MAX).map(|(_, tag)| tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_on_the_same_server() {
        let url: Url = "https://h.example/v2/x/tags/list?n=2".parse().unwrap();
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, text.parse().unwrap());
            next(&headers, &url).map(|url| url.to_string())
        };
        let following = "https://h.example/v2/x/tags/list?last=b&n=2".to_owned();
        assert_eq!(of(r#"</v2/x/tags/list?last=b&n=2>; rel="next""#), Some(following));
        assert_eq!(of(r#"<https://evil.example/>; rel="next""#), None);
        assert_eq!(of(r#"</v2/x/tags/list?n=2>; rel="next""#), None, "the same page again");
        assert_eq!(of(r#"</v2/>; rel="prev""#), None);
        assert_eq!(of("nonsense"), None);
    }

    #[test]
    fn likely_tags_come_first() {
        let tags = ["latest", "1.9.0", "1.10.0", "2.0"].map(str::to_owned).to_vec();
        assert_eq!(near("1.10", tags)[0], "1.10.0");
    }
}
