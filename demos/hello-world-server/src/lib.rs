//! The demo service: says hello, slowly if asked, and tells what it was told.
//!
//! It is what `lcactl up` registers, and what tests and benchmarks start, so it is quick
//! to listen (one thread, nothing done before the port is bound) and can be asked to
//! misbehave in the ways a real program does: see [`Options`].

mod answers;
mod inherited;
mod options;

use std::{io, net::SocketAddr, time::Duration};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
};

pub use options::Options;

/// Connections waiting to be accepted: what the kernel allows by default.
const BACKLOG: u32 = 4096;
/// A listener out of descriptors must not spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// Runs on a thread of its own runtime until SIGTERM and returns the exit code. For a
/// `main` that has no runtime yet.
///
/// # Errors
/// If the runtime cannot be made or the port cannot be bound.
pub fn run_to_end(options: Options) -> io::Result<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(options))
}

/// Binds, or takes the socket it was given (LISTEN_FDS), and serves until SIGTERM, and returns the exit code. Cancel safe: dropping it
/// closes the port.
///
/// # Errors
/// If the port cannot be bound.
pub async fn run(options: Options) -> io::Result<u8> {
    if options.ignore_term {
        // Catching it without ever looking is how a program ignores it.
        let mut deaf = signal(SignalKind::terminate())?;
        tokio::spawn(async move { while deaf.recv().await.is_some() {} });
    }
    tokio::time::sleep(options.start_delay).await;
    if let Some(code) = options.exit {
        eprintln!("exiting with code {code}, as told");
        return Ok(code);
    }
    if options.never_ready {
        eprintln!("never listening, as told");
        terminated(&options).await?;
        return Ok(0);
    }
    let listener = match inherited::socket()? {
        Some(socket) => TcpListener::from_std(socket)?,
        None => bind(options.address())?,
    };
    tokio::select! {
        served = serve(listener) => served.map(|()| 0),
        ended = terminated(&options) => ended.map(|()| 0),
    }
}

/// Serves the demo on `listener` until dropped.
///
/// # Errors
/// Never as things are: a failed accept is tried again.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let _slower_without = stream.set_nodelay(true);
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service_fn(answers::answer));
            let _client_went_away = connection.await;
        });
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)
}

/// Resolves at SIGTERM, unless told to ignore it.
async fn terminated(options: &Options) -> io::Result<()> {
    if options.ignore_term {
        std::future::pending::<()>().await;
    }
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}
