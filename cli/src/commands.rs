//! One file a command: ask the daemon, then print. Nothing is decided here that the
//! daemon decides for others, too.

mod allocate;
mod completions;
mod config;
mod doctor;
mod explain;
mod health;
mod instances;
mod logs;
mod peers;
mod release;
mod service;
mod watch_instances;

use crate::{
    args::{self, Command, Global},
    errors::Result,
    output::Output,
};

/// Runs a command that asks a daemon or looks at a file.
pub(crate) async fn run(command: Command, global: &Global, output: &mut Output) -> Result<()> {
    match command {
        Command::Peers(args) => peers::run(args, global, output).await,
        Command::Instances(args) if args.watch => watch_instances::run(args, global, output).await,
        Command::Explain { service } => explain::run(&service, global, output).await,
        Command::Completions { shell } => completions::run(shell, output),
        Command::Instances(args) => instances::run(args, global, output).await,
        Command::Allocate(args) => allocate::run(args, global, output).await,
        Command::Release { instance } => release::run(&instance, global, output).await,
        Command::Logs(args) => logs::run(args, global, output).await,
        Command::Service(command) => service::run(command, global, output).await,
        Command::Health => health::run(global, output).await,
        Command::Doctor(args) => doctor::run(args, global, output).await,
        Command::Config(args::Config::Check { file }) => config::check(file.as_deref(), output),
        Command::Up(_) | Command::DemoHelloWorldServer { .. } => {
            unreachable!("these run something themselves and are taken out before")
        }
    }
}
