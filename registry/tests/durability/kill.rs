//! `kill -9` at random moments, a hundred times, while several clients write.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use futures::future::{join, join_all};
use lca::{
    Digest, Kind,
    api::proto::{self, registry_client::RegistryClient},
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::process::{Server, list, put, refused, spec, upload};

const ROUNDS: usize = 100;
/// About what a write takes, most of it waiting for the disk.
const A_WRITE: Duration = Duration::from_millis(10);

/// One client, with names of its own: what it was told, and what it was not told yet.
struct Writer {
    names: Vec<String>,
    /// Revision and content of each name that is there.
    told: BTreeMap<String, (u64, String)>,
    /// What it was writing when the registry went: the new content, or none.
    pending: Option<(String, Option<String>)>,
    uploaded: Vec<Digest>,
    /// Counts what all writers were told.
    acknowledged: watch::Sender<usize>,
}

impl Writer {
    fn new(number: usize, acknowledged: watch::Sender<usize>) -> Self {
        let names = (0..5).map(|n| format!("w{number}-{n}")).collect();
        let (told, pending, uploaded) = Default::default();
        Self { names, told, pending, uploaded, acknowledged }
    }

    /// Writes until the registry is gone.
    async fn write(&mut self, mut client: RegistryClient<Channel>) {
        loop {
            let kind = match rand::random_range(0..10) {
                0 => self.upload(&mut client).await,
                1 | 2 => self.delete(&mut client).await,
                _ => self.put(&mut client).await,
            };
            if let Some(kind) = kind {
                assert_eq!(kind, Kind::Unavailable, "refused, not broken off: {:?}", self.pending);
                return;
            }
        }
    }

    async fn put(&mut self, client: &mut RegistryClient<Channel>) -> Option<Kind> {
        let name = self.any_name();
        let content = format!("{:032x}", rand::random::<u128>());
        let revision = self.told.get(&name).map_or(0, |(revision, _)| *revision);
        self.pending = Some((name.clone(), Some(content.clone())));
        match put(client, spec(&name, &content), Some(revision)).await {
            Ok(revision) => self.told.insert(name, (revision, content)),
            Err(error) => return Some(error.kind()),
        };
        self.acknowledge()
    }

    async fn delete(&mut self, client: &mut RegistryClient<Channel>) -> Option<Kind> {
        let name = self.any_name();
        let (revision, _) = self.told.get(&name)?; // nothing to remove: nothing went wrong
        self.pending = Some((name.clone(), None));
        let if_revision = Some(*revision);
        let request = proto::DeleteServiceRequest { name: name.clone(), if_revision };
        if let Err(status) = client.delete_service(request).await {
            return Some(lca::Error::from(status).kind());
        }
        self.told.remove(&name);
        self.acknowledge()
    }

    async fn upload(&mut self, client: &mut RegistryClient<Channel>) -> Option<Kind> {
        let bytes = rand::random::<[u8; 32]>().repeat(10_000);
        match upload(client, &bytes).await {
            Ok(digest) => self.uploaded.push(digest),
            Err(error) => return Some(error.kind()),
        }
        self.acknowledge()
    }

    fn acknowledge(&mut self) -> Option<Kind> {
        self.pending = None;
        self.acknowledged.send_modify(|count| *count += 1);
        None
    }

    fn any_name(&self) -> String {
        self.names[rand::random_range(0..self.names.len())].clone()
    }

    /// Compares with what is there. What was pending may have happened or not; then it is
    /// known which.
    fn check(&mut self, there: &BTreeMap<String, (u64, String)>) {
        for name in &self.names {
            let (found, told) = (there.get(name), self.told.get(name));
            let pending = self.pending.as_ref().filter(|(pending, _)| pending == name);
            let happened = pending
                .is_some_and(|(_, content)| found.map(|(_, content)| content) == content.as_ref());
            assert!(found == told || happened, "{name}: {found:?} is there, told was {told:?}");
        }
        let mine = there.iter().filter(|(name, _)| self.names.contains(name));
        self.told = mine.map(|(name, found)| (name.clone(), found.clone())).collect();
        self.pending = None;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_hundred_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut acknowledged) = watch::channel(0);
    let mut writers: Vec<_> = (0..4).map(|n| Writer::new(n, sender.clone())).collect();
    let mut broken_off = 0;
    for round in 0..ROUNDS {
        let mut server = Server::start(dir.path()).await;
        check(&server, &mut writers).await;
        let client = server.client().await;
        let writing = join_all(writers.iter_mut().map(|writer| writer.write(client.clone())));
        let killing = async {
            let enough = *acknowledged.borrow() + round % 4;
            acknowledged.wait_for(|count| *count >= enough).await.unwrap();
            // Not to wait for something: the moment in a write must be any.
            tokio::time::sleep(A_WRITE.mul_f64(rand::random())).await;
            server.kill().await;
        };
        join(writing, killing).await;
        broken_off += writers.iter().filter(|writer| writer.pending.is_some()).count();
    }
    let server = Server::start(dir.path()).await;
    check(&server, &mut writers).await;
    let acknowledged = *acknowledged.borrow();
    println!("{acknowledged} acknowledged writes, all there; {broken_off} broken off");
    assert!(acknowledged >= ROUNDS, "only {acknowledged} writes were acknowledged");
    assert!(broken_off >= ROUNDS / 2, "only {broken_off} writes were broken off");
    for digest in writers.iter().flat_map(|writer| &writer.uploaded) {
        check_artifact(dir.path(), *digest);
    }
}

async fn check(server: &Server, writers: &mut [Writer]) {
    let there = list(&mut server.client().await).await.into_iter();
    let there: BTreeMap<_, _> =
        there.map(|spec| (spec.name.clone(), (spec.revision, spec.arguments.concat()))).collect();
    writers.iter_mut().for_each(|writer| writer.check(&there));
    let known: usize = writers.iter().map(|writer| writer.told.len()).sum();
    assert_eq!(known, there.len(), "names that nobody wrote");
}

fn check_artifact(dir: &Path, digest: Digest) {
    let path = dir.join("data/artifacts/sha256").join(digest.hex());
    assert_eq!(Digest::of(&fs::read(path).unwrap()), digest);
}

#[tokio::test]
async fn a_second_process_on_the_same_folder_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let said = refused(dir.path(), None).await;
    assert!(said.contains("registry.redb") && said.contains("another process"), "{said}");
    assert!(said.contains("--data-dir"), "{said}");
    put(&mut server.client().await, spec("a", "1"), None).await.unwrap();
    // Killed, it holds nothing any more.
    server.kill().await;
    let server = Server::start(dir.path()).await;
    assert_eq!(list(&mut server.client().await).await.len(), 1);
}
