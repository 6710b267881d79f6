//! What `grpc-timeout` does on a real listener; the layer's own tests have a clock to turn.

use tonic::Code;

use crate::raw::Daemon;

#[tokio::test]
async fn a_deadline_that_cannot_be_kept_is_exceeded_and_no_deadline_is_fine() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let list = "lca.v1.Registry/ListServices";
    for timeout in ["1u", "0n", "0S", "0H", "1n"] {
        let reply = daemon.call_with(&client, list, ("grpc-timeout", timeout), &[]).await;
        assert_eq!(reply.code, Code::DeadlineExceeded, "{timeout}: {}", reply.message());
    }
    for timeout in ["99999999H", "20S", "nonsense"] {
        let reply = daemon.call_with(&client, list, ("grpc-timeout", timeout), &[]).await;
        assert_eq!(reply.code, Code::Ok, "{timeout}: {}", reply.message());
    }
    assert_eq!(daemon.call(&client, list, &[]).await.code, Code::Ok);
}

#[tokio::test]
async fn a_stream_ends_at_the_deadline_of_its_caller() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let watch = "lca.v1.Registry/WatchServices";
    let reply = daemon.call_with(&client, watch, ("grpc-timeout", "500m"), &[]).await;
    assert_eq!(reply.code, Code::DeadlineExceeded, "{}", reply.message());
    assert!(!reply.body.is_empty(), "what there was before came");
}
