//! `hello-world-server`: the demo service as a program of its own.

use std::process::ExitCode;

use hello_world_server::Options;

fn main() -> ExitCode {
    let ran = Options::parse(std::env::args().skip(1)).and_then(hello_world_server::run_to_end);
    match ran {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hello-world-server: {error}");
            ExitCode::FAILURE
        }
    }
}
