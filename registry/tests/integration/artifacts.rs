//! The RPCs about artifacts.

use futures::{StreamExt as _, stream};
use lca::{
    Digest, Error, Kind,
    api::proto::{self, put_artifact_request::Part},
    discovery::memory::Network,
    testing::eventually,
};

use crate::harness::TestRegistry;

fn header(digest: Digest, size: usize) -> Part {
    let digest = digest.to_string();
    Part::Header(proto::ArtifactHeader { digest, size: size as u64 })
}

fn data(bytes: &[u8]) -> Part {
    Part::Data(bytes.to_vec())
}

async fn upload(
    registry: &TestRegistry,
    parts: Vec<Part>,
) -> lca::Result<proto::PutArtifactResponse> {
    let parts = parts.into_iter().map(|part| proto::PutArtifactRequest { part: Some(part) });
    let answer = registry.client().await.put_artifact(stream::iter(parts)).await;
    Ok(answer.map_err(Error::from)?.into_inner())
}

async fn download(
    registry: &TestRegistry,
    digest: Digest,
) -> lca::Result<Vec<proto::ArtifactChunk>> {
    let request = proto::GetArtifactRequest { digest: digest.to_string() };
    let chunks = registry.client().await.get_artifact(request).await.map_err(Error::from)?;
    let chunks = chunks.into_inner().map(|chunk| chunk.map_err(Error::from));
    chunks.collect::<Vec<_>>().await.into_iter().collect()
}

/// Bytes that differ from block to block.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 977) as u8).collect()
}

#[tokio::test]
async fn what_is_uploaded_can_be_downloaded_and_is_not_taken_twice() {
    let registry = TestRegistry::start(&Network::default());
    for length in [0, 1, 3_000_000] {
        let bytes = bytes(length);
        let digest = Digest::of(&bytes);
        let mut parts = vec![header(digest, length)];
        parts.extend(bytes.chunks(1 << 20).map(data));
        let answer = upload(&registry, parts.clone()).await.unwrap();
        assert_eq!((answer.size, answer.existed), (length as u64, false));
        let again = upload(&registry, parts).await.unwrap();
        assert!(again.existed, "the bytes were taken again");

        let chunks = download(&registry, digest).await.unwrap();
        assert_eq!(chunks[0].size, length as u64);
        assert!(chunks.iter().all(|chunk| chunk.data.len() <= 1 << 20));
        let received: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
        assert!(received == bytes);
    }
}

#[tokio::test]
async fn an_upload_that_is_not_what_it_claims_is_refused_and_nothing_is_kept() {
    let registry = TestRegistry::start(&Network::default());
    let digest = Digest::of(b"right");
    let claims = Part::Header(proto::ArtifactHeader { digest: "md5:1".into(), size: 5 });
    let broken = [
        vec![],
        vec![data(b"right")],
        vec![claims],
        vec![header(digest, 5), data(b"wrong")],
        vec![header(digest, 4), data(b"right")],
        vec![header(digest, 6), data(b"right")],
        vec![header(digest, usize::MAX), data(b"right")],
        vec![header(digest, 5), header(digest, 5)],
        vec![header(digest, 2_000_000), data(&bytes((1 << 20) + 1))],
    ];
    for parts in broken {
        let error = upload(&registry, parts).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    let error = upload(&registry, vec![header(digest, 5), data(b"wrong")]).await.unwrap_err();
    assert!(error.public().contains(&digest.to_string()), "{error}");
    assert_eq!(registry.registry.artifacts().list(), []);
    let incoming = registry.folder.path().join("incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
    assert_eq!(download(&registry, digest).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_leaves_nothing() {
    let registry = TestRegistry::start(&Network::default());
    let incoming = registry.folder.path().join("incoming");
    let first = vec![header(Digest::of(b"x"), 1 << 20), data(&[0; 1000])];
    let first = first.into_iter().map(|part| proto::PutArtifactRequest { part: Some(part) });
    let parts = stream::iter(first).chain(stream::pending());
    let mut client = registry.client().await;
    let uploading = tokio::spawn(async move { client.put_artifact(parts).await });
    let count = async || std::fs::read_dir(&incoming).unwrap().count();
    eventually("the upload to begin", async || match count().await {
        0 => Err("no file"),
        _ => Ok(()),
    })
    .await;
    uploading.abort();
    eventually("its bytes to go", async || match count().await {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
}
