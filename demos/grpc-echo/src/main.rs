//! `grpc-echo`: the service as a program of its own, on the port that `SERVICE_PORT` names.

use std::process::ExitCode;

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Where `SERVICE_PORT` says nothing.
const DEFAULT_PORT: u16 = 8080;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("grpc-echo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let port = match std::env::var("SERVICE_PORT") {
        Ok(port) => port.parse()?,
        Err(_) => DEFAULT_PORT,
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let mut term = signal(SignalKind::terminate())?;
    let end = async move {
        term.recv().await;
    };
    Ok(grpc_echo::serve(listener, end).await?)
}
