//! What runs in the containers of tests: compiled by `testing.rs` to a static binary with
//! nothing but the standard library, so that an image of it needs nothing else. It writes
//! three lines, and then does what its first argument says.

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn kill(pid: i32, number: i32) -> i32;
}

fn main() {
    let mut arguments = env::args().skip(1);
    let word = arguments.next().unwrap_or_else(|| "serve".into());
    if word == "deaf" {
        // SAFETY: 1 is SIG_IGN, 15 SIGTERM: no code of ours is ever called by it.
        unsafe { signal(15, 1) };
    }
    print!("first\nsecond\nthird\n");
    std::io::stdout().flush().expect("writing what is said");
    match word.as_str() {
        "run" | "deaf" => forever(),
        "exit" => std::process::exit(arguments.next().expect("a code").parse().expect("a number")),
        "die" => {
            // SAFETY: a signal to ourselves, whose number we know.
            unsafe { kill(std::process::id() as i32, 9) };
        }
        "hog" => hog(),
        "fork" => fork(),
        "serve" => serve(),
        other => panic!("what is {other}?"),
    }
}

fn forever() {
    loop {
        thread::sleep(Duration::from_secs(1000));
    }
}

/// Wants more memory than there is.
fn hog() {
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
    }
}

/// Starts threads until it may not, and says how many it got.
fn fork() {
    let mut count = 0;
    while thread::Builder::new().stack_size(64 << 10).spawn(forever).is_ok() && count < 5000 {
        count += 1;
    }
    println!("{count} threads");
    std::io::stdout().flush().expect("writing what is said");
    forever();
}

fn serve() {
    let port = env::var("SERVICE_PORT").expect("SERVICE_PORT");
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("binding the port");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) {
    let Some(head) = head(&mut stream) else { return };
    let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
    let body = match path.strip_prefix("/call/") {
        Some(service) => call(service),
        None => said(&path),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    drop(stream.write_all(answer.as_bytes()));
}

fn said(path: &str) -> String {
    match path {
        "/env" => env::vars().map(|(name, value)| format!("{name}={value}\n")).collect(),
        "/write" => match std::fs::write("/written", "x") {
            Ok(()) => "written\n".into(),
            Err(error) => format!("{error}\n"),
        },
        "/rights" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let told = ["CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"];
            let lines = status.lines().filter(|line| told.iter().any(|name| line.starts_with(name)));
            lines.map(|line| format!("{line}\n")).collect()
        }
        _ => format!("hello from {}\n", env::var("LCA_INSTANCE_ID").unwrap_or_default()),
    }
}

/// Asks another service through the front it was told of, and says what that says.
fn call(service: &str) -> String {
    let [host, port] = ["PROXY_IP", "PROXY_PORT"].map(|name| env::var(name).unwrap_or_default());
    let asked = TcpStream::connect(format!("{host}:{port}")).and_then(|mut stream| {
        write!(stream, "GET /{service}/ HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.unwrap_or_else(|error| format!("cannot call {service} by {host}:{port}: {error}\n"))
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) if bytes.len() < 64 << 10 => bytes.extend(&buffer[..count]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
