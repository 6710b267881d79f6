//! `lcactl`: parse, log, run, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match lca_cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    lca::logs::init(cli.log_format(), cli.log_level());
    lca_cli::run_to_end(cli)
}
