//! `proxy`: parse, log, run, exit. See `lca_daemon::run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lca_daemon::run::main::<lca_daemon::args::Proxy>()
}
