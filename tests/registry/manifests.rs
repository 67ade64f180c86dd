//! Documents that a registry may send: nested, lying, too long, of two meanings.

use dvrun::oci::{Algorithm, Digest, Hasher, ManifestError};
use dvrun::registry::RegistryError;
use serde_json::{Value, json};
use tempfile::tempdir;

use super::{client, fetch};
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::{Image, image, image_for, index};

async fn pull(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static, name: &str) -> Result<Digest, RegistryError> {
    let server = Faults::serve(answer);
    let cache = tempdir().unwrap();
    let fetched = fetch(&client(), cache.path(), &format!("docker://{}/{name}", server.host())).await;
    fetched.map(|(resolved, _)| resolved.digest)
}

fn amd64() -> Value {
    json!({"os": "linux", "architecture": "amd64"})
}

#[tokio::test]
async fn indexes_in_indexes_and_attestations() {
    let (amd, arm, attestation) = (image(&[b"amd"]), image_for("arm64", &[b"arm"]), image(&[b"attestation"]));
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let inner = index(&[
        (unknown, &attestation),
        (json!({"os": "linux", "architecture": "arm64"}), &arm),
        (amd64(), &amd),
    ]);
    let outer = index(&[(Value::Null, &index(&[(Value::Null, &inner)]))]);
    assert_eq!(pull(move |asked| outer.answer(asked), "x:1").await.unwrap(), amd.root);
}

#[tokio::test]
async fn the_platforms_of_inner_indexes_are_named() {
    let (arm, power) = (image_for("arm64", &[b"arm"]), image_for("ppc64le", &[b"power"]));
    let inner = index(&[(json!({"os": "linux", "architecture": "ppc64le"}), &power)]);
    let outer = index(&[(json!({"os": "linux", "architecture": "arm64"}), &arm), (Value::Null, &inner)]);
    let error = pull(move |asked| outer.answer(asked), "x:1").await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("nothing for linux/amd64") && text.contains("linux/arm64, linux/ppc64le"),
        "{text}"
    );
}

#[tokio::test]
async fn nesting_ends() {
    let mut image = image(&[b"x"]);
    for _ in 0..5 {
        image = index(&[(Value::Null, &image)]);
    }
    let error = pull(move |asked| image.answer(asked), "x:1").await.unwrap_err();
    assert!(matches!(error, RegistryError::Nested { .. }), "{error}");
}

#[tokio::test]
async fn what_headers_say_does_not_count() {
    let image = image(&[b"x"]);
    let root = image.root.clone();
    for kind in [
        "text/html",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v1+json",
    ] {
        let image = image.clone();
        let digest = pull(
            move |asked| {
                let mut reply = image.answer(asked);
                reply.headers.retain(|(name, _)| name != "Content-Type");
                let other = Digest::sha256(b"another").to_string();
                reply.with("Content-Type", kind).with("Docker-Content-Digest", other)
            },
            "x:1",
        );
        assert_eq!(digest.await.unwrap(), root, "{kind}");
    }
}

#[tokio::test]
async fn every_format_is_asked_for() {
    let image = image(&[b"x"]);
    let server = Faults::serve(move |asked| image.answer(asked));
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/x:1", server.host()))
        .await
        .unwrap();
    let asked = server.asked();
    let manifest = asked.iter().find(|asked| asked.target.contains("/manifests/")).unwrap();
    let accept = manifest.header("accept").unwrap();
    for kind in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
    ] {
        assert!(accept.split(", ").any(|accepted| accepted == kind), "{kind}: {accept}");
    }
}

/// The same image with another root document.
fn with_root(mut image: Image, change: impl FnOnce(&mut Value)) -> Image {
    let mut root: Value = serde_json::from_slice(&image.blobs[&image.root.to_string()]).unwrap();
    change(&mut root);
    let bytes = root.to_string().into_bytes();
    image.root = Digest::sha256(&bytes);
    image.blobs.insert(image.root.to_string(), bytes);
    image
}

#[tokio::test]
async fn documents_of_two_meanings_or_none_are_refused() {
    let two = with_root(image(&[b"x"]), |root| root["manifests"] = json!([]));
    let error = pull(move |asked| two.answer(asked), "x:1").await.unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Manifest {
                source: ManifestError::Ambiguous,
                ..
            }
        ),
        "{error:?}"
    );
    let path = with_root(image(&[b"x"]), |root| {
        root["layers"][0]["digest"] = json!("sha256:../../../../tmp/x")
    });
    let error = pull(move |asked| path.answer(asked), "x:1").await.unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Manifest {
                source: ManifestError::Json(_),
                ..
            }
        ),
        "{error:?}"
    );
    let error = pull(|_| Reply::new(200, "<html>please log in</html>"), "x:1").await.unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Manifest {
                source: ManifestError::Json(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_manifest_without_end_is_cut_off() {
    let error = pull(
        |_| {
            let mut reply = Reply::new(200, vec![b' '; 5 << 20]);
            reply.length = None;
            reply
        },
        "x:1",
    )
    .await
    .unwrap_err();
    assert!(format!("{error:?}").contains("TooLong"), "{error:?}");
}

#[tokio::test]
async fn another_manifest_than_the_digest_names_is_refused() {
    let (wanted, other) = (image(&[b"wanted"]), image(&[b"other"]));
    let name = format!("x@{}", wanted.root);
    let error = pull(
        move |asked| {
            Image {
                root: other.root.clone(),
                ..other.clone()
            }
            .answer(&by_tag(asked))
        },
        &name,
    )
    .await
    .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, RegistryError::Mismatch { .. }) && text.contains(&wanted.root.to_string()),
        "{text}"
    );
}

fn by_tag(asked: &Asked) -> Asked {
    let target = asked.target.split("@").next().unwrap_or_default();
    let target = target.rsplit_once('/').map_or_else(String::new, |(path, _)| format!("{path}/1"));
    Asked { target, ..asked.clone() }
}

#[tokio::test]
async fn sha512_names_manifests_and_layers() {
    let sha512 = |bytes: &[u8]| {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(bytes);
        hasher.finish()
    };
    let mut image = image(&[b"x"]);
    let layer = sha512(b"x");
    image.blobs.insert(layer.to_string(), b"x".to_vec());
    let image = with_root(image, |root| root["layers"][0]["digest"] = json!(layer));
    let bytes = image.blobs[&image.root.to_string()].clone();
    let root = sha512(&bytes);
    let served = {
        let mut image = image.clone();
        image.blobs.insert(root.to_string(), bytes);
        image
    };
    let name = format!("x:1@{root}");
    assert_eq!(pull(move |asked| served.answer(asked), &name).await.unwrap(), root);
    let mut damaged = image;
    damaged.blobs.insert(layer.to_string(), b"y".to_vec());
    let error = pull(move |asked| damaged.answer(asked), "x:1").await.unwrap_err();
    assert!(format!("{error:?}").contains("Digest"), "{error:?}");
}
