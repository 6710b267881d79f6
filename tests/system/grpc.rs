//! A gRPC program, started by its first call.

use std::time::Duration;

use futures::StreamExt as _;
use grpc_echo::proto::{FailRequest, Words, echo_client::EchoClient};
use lca::api::proto::{self, InstanceState};
use lca_tests::{Cluster, Service, program};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Endpoint};

const SOON: Duration = Duration::from_secs(30);

fn echo(name: &str) -> anyhow::Result<Service> {
    let spec = proto::ServiceSpec {
        name: name.into(),
        protocol: proto::Protocol::H2c.into(),
        ..Default::default()
    };
    Ok(Service { program: Some(std::fs::read(program("grpc-echo"))?), spec })
}

#[tokio::test]
async fn a_grpc_program_is_started_by_its_first_call_and_called_in_every_way() -> anyhow::Result<()>
{
    let cluster = Cluster::builder().start().await?;
    cluster.add(&echo("echo")?).await?;
    assert!(cluster.instances().await?.is_empty(), "nothing runs before somebody calls");

    let front = cluster.front(0);
    let channel = Endpoint::from_shared(format!("http://{front}"))?
        .origin(format!("http://echo.lca.localhost:{}", front.port()).parse()?)
        .connect()
        .await?;
    let mut client = EchoClient::new(channel);
    let words = |text: &str| Words { text: text.into() };
    let said = timeout(SOON, client.say(words("hello"))).await??.into_inner();
    assert_eq!(said.text, "hello");
    let instances = cluster.instances().await?;
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].state(), InstanceState::Ready);

    // Each is answered before the next is said.
    let (say, said) = mpsc::channel(1);
    let talk = timeout(SOON, client.talk(ReceiverStream::new(said))).await??;
    let mut heard = talk.into_inner();
    for n in 0..10 {
        say.send(words(&n.to_string())).await?;
        let answer = timeout(SOON, heard.next()).await?;
        assert_eq!(answer.transpose()?, Some(words(&n.to_string())));
    }
    drop(say);
    assert!(timeout(SOON, heard.next()).await?.is_none(), "it ends as its caller does");

    let fail = FailRequest { code: Code::DataLoss as i32, message: "gone: ü".into() };
    let status = timeout(SOON, client.fail(fail)).await?.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "gone: ü"));
    assert_eq!(cluster.instances().await?.len(), 1);
    drop((client, heard));
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_call_to_what_is_not_there_ends_with_a_status_of_grpc() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    let broken = Service { program: Some(b"#!/bin/sh\nexit 3\n".to_vec()), ..echo("broken")? };
    cluster.add(&broken).await?;
    let front = cluster.front(0);
    for (service, code) in [("nobody", Code::NotFound), ("broken", Code::FailedPrecondition)] {
        let origin = format!("http://{service}.lca.localhost:{}", front.port());
        let endpoint = Endpoint::from_shared(format!("http://{front}"))?.origin(origin.parse()?);
        let mut client = EchoClient::new(endpoint.connect().await?);
        let status = timeout(SOON, client.say(Words::default())).await?.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(service), "{status:?}");
    }
    cluster.drain().await;
    Ok(())
}
