//! A program that watches and does not read.

use lca::{
    api::proto,
    local::{Token, tcp},
    shutdown::Tasks,
};
use lca_registry::Registry;
use prost::Message as _;
use tonic::{Code, service::Routes};

use crate::raw::{call, connect, framed, open, to_end};

/// More than is kept for all watchers together.
const CHANGES: usize = 1200;

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let any = ([127, 0, 0, 1], 0).into();
    let listener = tcp::Listener::bind(any, file.clone()).await.unwrap();
    let address = listener.address();
    // In memory, since 1 200 writes to a disk take long.
    let registry = Registry::in_memory(dir.path()).unwrap();
    let tasks = Tasks::default();
    listener.serve(Routes::new(registry.server()), &tasks.spawner());
    let token = Token::load(&file).unwrap().bearer();
    let headers = [("authorization", token.to_str().unwrap())];

    let lazy = connect(address, 1024).await;
    let watch = open(&lazy, "lca.v1.Registry/WatchServices", &headers, framed(&[])).await;
    let client = connect(address, 1 << 20).await;
    let mut if_revision = None;
    for change in 0..CHANGES {
        let arguments = vec![format!("{change:04000}")];
        let spec = proto::ServiceSpec { name: "busy".into(), arguments, ..Default::default() };
        let message = proto::PutServiceRequest { spec: Some(spec), if_revision };
        let message = framed(&message.encode_to_vec());
        let reply = call(&client, "lca.v1.Registry/PutService", &headers, message).await;
        assert_eq!(reply.code, Code::Ok, "{}", reply.message());
        let stored: proto::PutServiceResponse = reply.decoded();
        if_revision = stored.spec.map(|spec| spec.revision);
    }
    // Only now it reads.
    let reply = to_end(None, watch).await;
    assert_eq!(reply.code, Code::ResourceExhausted, "{}", reply.message());
    let got = reply.body.len() / 4_000;
    assert!(got < CHANGES / 2, "{got} changes had been kept for it");
}
