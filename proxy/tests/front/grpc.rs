//! gRPC through both hops: tonic at both ends, and calls that go wrong.

use std::{net::SocketAddr, time::Duration};

use futures::{future::join_all, stream};
use grpc_echo::proto::{FailRequest, RepeatRequest, Words, echo_client::EchoClient};
use lca::{Protocol, testing::eventually};
use lca_ingress::Registration;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::world::{App, SOON, World};

type Client = EchoClient<Channel>;

/// A service whose instance is an echo.
struct Echo {
    registration: Registration,
    served: JoinHandle<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn echo(world: &World, name: &str) -> Echo {
    let App { listener, registration, .. } = world.speaking(name, Protocol::H2c).await;
    let served = tokio::spawn(serve(listener));
    Echo { registration, served }
}

async fn serve(listener: TcpListener) {
    grpc_echo::serve(listener, std::future::pending()).await.unwrap();
}

/// A client with a connection of its own.
async fn client(front: SocketAddr, service: &str) -> Client {
    let origin = format!("http://{service}.lca.localhost:{}", front.port());
    let endpoint = Endpoint::from_shared(format!("http://{front}")).unwrap();
    EchoClient::new(endpoint.origin(origin.parse().unwrap()).connect().await.unwrap())
}

fn words(text: impl Into<String>) -> Words {
    Words { text: text.into() }
}

#[tokio::test]
async fn calls_of_every_kind_pass_both_hops() {
    let world = World::start().await;
    let _echo = echo(&world, "echo").await;
    let mut client = client(world.front, "echo").await;

    let mut say = Request::new(words("hello"));
    say.metadata_mut().insert("x-mine", "1".parse().unwrap());
    let said = timeout(SOON, client.say(say)).await.unwrap().unwrap();
    assert_eq!(said.metadata().get("x-mine").unwrap(), "1");
    assert!(said.metadata().get("lca-request-id").is_some());
    assert_eq!(said.into_inner().text, "hello");

    let (tell, told) = mpsc::channel(1);
    let talk = timeout(SOON, client.talk(ReceiverStream::new(told))).await.unwrap();
    let mut heard = talk.unwrap().into_inner();
    for n in 0..20 {
        let said = words("x".repeat(n * 5000));
        tell.send(said.clone()).await.unwrap();
        assert_eq!(timeout(SOON, heard.message()).await.unwrap().unwrap(), Some(said));
    }
    drop(tell);
    assert_eq!(timeout(SOON, heard.message()).await.unwrap().unwrap(), None);

    let long = stream::iter((0..200).map(|_| words("x".repeat(20_000))));
    let listened = timeout(SOON, client.listen(long)).await.unwrap().unwrap();
    assert_eq!(listened.into_inner().text, "4000000");

    let repeat = RepeatRequest { text: "x".repeat(20_000), times: 200, fail: true };
    let mut answers = client.repeat(repeat).await.unwrap().into_inner();
    for _ in 0..200 {
        let answer = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.text.len(), 20_000);
    }
    let ended = timeout(SOON, answers.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Aborted, "as told"));

    let fail = FailRequest { code: Code::DataLoss as i32, message: "ü %".into() };
    let failed = timeout(SOON, client.fail(fail)).await.unwrap().unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::DataLoss, "ü %"));
}

#[tokio::test]
async fn who_writes_all_before_it_reads_is_not_stuck() {
    let world = World::start().await;
    let _echo = echo(&world, "echo").await;
    let mut client = client(world.front, "echo").await;
    // The head of the answer is there, and nothing of the rest is read yet.
    let (tell, told) = mpsc::channel(1);
    let talk = timeout(SOON, client.talk(ReceiverStream::new(told))).await.unwrap().unwrap();
    for _ in 0..10 {
        timeout(SOON, tell.send(words("x".repeat(10_000)))).await.unwrap().unwrap();
    }
    drop(tell);
    let mut heard = talk.into_inner();
    let mut length = 0;
    while let Some(answer) = timeout(SOON, heard.message()).await.unwrap().unwrap() {
        length += answer.text.len();
    }
    assert_eq!(length, 100_000);
}

#[tokio::test]
async fn a_hundred_stalled_calls_leave_the_next_at_full_speed() {
    let mut world = World::start().await;
    world.limit = 300;
    let _echo = echo(&world, "echo").await;
    let (mut unread, unheard) =
        (client(world.front, "echo").await, client(world.front, "echo").await);
    let mut next = client(world.front, "echo").await;
    let long = RepeatRequest { text: "x".repeat(60_000), times: 200, fail: false };
    let whole = async |client: &mut Client| {
        let since = Instant::now();
        let mut answers = client.repeat(long.clone()).await.unwrap().into_inner();
        let mut length = 0;
        while let Some(answer) = timeout(SOON, answers.message()).await.unwrap().unwrap() {
            length += answer.text.len();
        }
        assert_eq!(length, 12_000_000);
        let heard = stream::iter((0..200).map(|_| words("x".repeat(60_000))));
        let heard = timeout(SOON, next_listen(client, heard)).await.unwrap();
        assert_eq!(heard, "12000000");
        since.elapsed()
    };
    let alone = whole(&mut next).await;

    // Fifty answers that nobody reads, and fifty requests that the application does not.
    let mut answers = Vec::new();
    for _ in 0..50 {
        let unread = timeout(SOON, unread.repeat(long.clone())).await.unwrap();
        answers.push(unread.unwrap().into_inner());
    }
    let mut pushing = Vec::new();
    for _ in 0..50 {
        let (tell, told) = mpsc::channel(1);
        let mut client = unheard.clone();
        let call = tokio::spawn(async move { client.hang(ReceiverStream::new(told)).await });
        pushing.push((call, tell));
    }
    // Each says more until nothing is taken for a while.
    let stalled = pushing.iter().map(|(_, tell)| async move {
        let mut said = 0;
        while let Ok(sent) =
            timeout(Duration::from_millis(500), tell.send(words("x".repeat(60_000)))).await
        {
            sent.unwrap();
            said += 1;
        }
        said
    });
    let said: Vec<u32> = join_all(stalled).await;
    assert!(said.iter().all(|said| *said < 200), "they are stalled: {said:?}");
    eventually("all to have come to the application", async || {
        match unheard_count(&mut next.clone()).await {
            50 => Ok(()),
            calls => Err(format!("{calls} are open")),
        }
    })
    .await;

    let beside = whole(&mut next).await;
    assert!(beside < alone * 5 + Duration::from_secs(2), "{beside:?} beside, {alone:?} alone");
    // They are stalled, not lost. Together, as their client has one window for all.
    join_all(answers.into_iter().map(|mut answer| async move {
        let mut length = 0;
        while let Some(part) = timeout(SOON * 2, answer.message()).await.unwrap().unwrap() {
            length += part.text.len();
        }
        assert_eq!(length, 12_000_000);
    }))
    .await;
}

/// A call of `Hang`, until this is dropped. A client of tonic gives a call up only if the end
/// of its requests goes with it.
struct Hanging(JoinHandle<()>, #[expect(dead_code, reason = "held")] mpsc::Sender<Words>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn hang(mut client: Client) -> Hanging {
    let (tell, told) = mpsc::channel(1);
    let call = async move {
        let _answer = client.hang(ReceiverStream::new(told)).await;
        std::future::pending().await
    };
    Hanging(tokio::spawn(call), tell)
}

async fn next_listen(
    client: &mut Client,
    heard: impl futures::Stream<Item = Words> + Send + 'static,
) -> String {
    client.listen(heard).await.unwrap().into_inner().text
}

async fn unheard_count(client: &mut Client) -> u32 {
    timeout(SOON, client.stuck(Words::default())).await.unwrap().unwrap().into_inner().calls
}

#[tokio::test]
async fn a_call_that_is_given_up_is_given_up_at_the_application() {
    let world = World::start().await;
    let echo = echo(&world, "echo").await;
    let mut client = client(world.front, "echo").await;
    let call = hang(client.clone());
    let stuck = async |client: &mut Client, wanted: u32| {
        eventually("the application to know", async || {
            match unheard_count(&mut client.clone()).await {
                calls if calls == wanted => Ok(()),
                calls => Err(format!("{calls} are open")),
            }
        })
        .await;
    };
    stuck(&mut client, 1).await;
    drop(call);
    stuck(&mut client, 0).await;
    drop(client);
    timeout(SOON, echo.registration.drained()).await.expect("nothing stays open");
}

#[tokio::test]
async fn failures_of_ours_are_told_in_the_words_of_grpc() {
    let mut world = World::start().await;
    world.limit = 1;
    let echo = echo(&world, "echo").await;
    // Nobody of that name.
    let mut nobody = client(world.front, "nobody").await;
    let status = timeout(SOON, nobody.say(words("x"))).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("nobody"), "{status:?}");
    assert!(status.metadata().get("lca-request-id").is_some());
    // One is in, one waits, and the next has no place.
    let calls: Vec<_> = (0..3).map(|_| client(world.front, "echo")).collect();
    let mut calls = join_all(calls).await;
    let hanging: Vec<_> = calls.drain(..2).map(hang).collect();
    let mut last = calls.pop().unwrap();
    let mut full = None;
    eventually("the instance to be full", async || {
        match timeout(SOON, last.say(words("x"))).await.unwrap() {
            Err(status) if status.code() == Code::ResourceExhausted => {
                full = Some(status);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let full = full.unwrap();
    assert!(full.message().contains("overloaded"), "{full:?}");
    assert!(full.metadata().get("grpc-retry-pushback-ms").is_some(), "{full:?}");
    drop(hanging);
    timeout(SOON, echo.registration.drained()).await.unwrap();
    // In the middle of an answer.
    let long = RepeatRequest { text: "x".repeat(60_000), times: 1000, fail: false };
    let mut answers = timeout(SOON, last.repeat(long)).await.unwrap().unwrap().into_inner();
    timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    drop(echo);
    let ended = timeout(SOON, async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    });
    let status = ended.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // And nobody is left.
    let status = timeout(SOON, last.say(words("x"))).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_call_that_was_refused_goes_to_another_with_all_it_has_sent() {
    let world = World::start().await;
    let App { listener, registration, hash, service, protocol } =
        world.speaking("echo", Protocol::H2c).await;
    let first = App { listener, registration, hash, service, protocol };
    let second = world.another(&first).await;
    let App { listener, registration: stays, .. } = second;
    let served = tokio::spawn(serve(listener));
    first.registration.drain();
    let mut client = client(world.front, "echo").await;
    for n in 0..20 {
        // Its length is said nowhere: it is held while it is small.
        let said = timeout(SOON, client.say(words(n.to_string()))).await.unwrap();
        assert_eq!(said.unwrap().into_inner().text, n.to_string());
    }
    served.abort();
    drop(stays);
    assert!(first.is_untouched().await);
}
