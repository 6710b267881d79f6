//! `lcactl completions`: the script a shell loads to complete command lines.

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Shell},
    errors::Result,
    output::Output,
};

pub(super) fn run(shell: Shell, output: &mut Output) -> Result<()> {
    let mut script = Vec::new();
    let (mut command, name) = (Cli::command(), "lcactl");
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, name, &mut script);
    output.raw(&script)
}
