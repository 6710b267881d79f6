//! The README's second screen, typed as it is written there, on three machines that are
//! three loopback addresses.

use std::collections::BTreeMap;

use anyhow::Context as _;
use lca_tests::eventually;

use crate::machines::{Daemon, Machine, free_port};

/// A line of the README: on which machine, what, and what the README says it prints.
#[derive(Debug)]
struct Typed {
    machine: usize,
    command: String,
    printed: String,
}

/// The commands of the story, in its order; those for every machine are not among them.
fn story() -> Vec<Typed> {
    let readme = include_str!("../../README.md");
    let (_, story) = readme.split_once("\n## Three machines\n").expect("the story");
    let (story, _) = story.split_once("\n## ").expect("something follows");
    let code = story.split("```").skip(1).step_by(2).flat_map(|block| block.lines().skip(1));
    let code = code.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let mut typed: Vec<Typed> = Vec::new();
    let mut every = Vec::new();
    for line in code.lines() {
        match line.split_once("$ ") {
            Some(("every", command)) => every.push(command),
            Some((name @ ("one" | "two" | "three"), command)) => {
                let machine = ["one", "two", "three"].iter().position(|one| *one == name);
                let machine = machine.expect("one of the three");
                typed.push(Typed { machine, command: command.into(), printed: String::new() });
            }
            _ => {
                let last = typed.last_mut().expect("output follows a command");
                last.printed += &format!("{line}\n");
            }
        }
    }
    // What `Machine` does instead: the programs are those of this build.
    assert_eq!(
        every,
        ["cargo build --release", "export PATH=\"$PWD/target/release:$PATH\""],
        "the machines of the test have to do the same"
    );
    typed
}

/// Addresses and ports of the story, as they are in the test.
#[derive(Default)]
struct Here {
    ports: BTreeMap<String, u16>,
    registry: String,
}

impl Here {
    /// `10.0.0.N` is `127.0.0.1N`, a port is one that is free, the registry has its id.
    fn text(&mut self, command: &str) -> String {
        let text = command.replace("10.0.0.", "127.0.0.1");
        // Number by number: a port that was put in may look like another one of the story.
        let numbers = text.split_inclusive(|c: char| !c.is_ascii_digit());
        let text: String = numbers.map(|number| self.port(number)).collect();
        text.replace("12D3KooWGz...", &self.registry)
    }

    /// A number and what ends it, with the test's port in place of one of the story.
    fn port(&mut self, text: &str) -> String {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        if !["4001", "4002", "4003", "4004", "4201", "4202", "8080"].contains(&number) {
            return text.to_owned();
        }
        let free = self.ports.entry(number.into()).or_insert_with(free_port);
        format!("{free}{rest}")
    }
}

#[test]
fn only_whole_numbers_are_ports() {
    let mut here = Here {
        ports: BTreeMap::from([("4202".into(), 28_080), ("8080".into(), 28_081)]),
        ..Here::default()
    };
    let text = here.text("proxy 4202 my-app 127.0.0.1:8080 --listen /ip4/10.0.0.2/tcp/14001");
    assert_eq!(text, "proxy 28080 my-app 127.0.0.1:28081 --listen /ip4/127.0.0.12/tcp/14001");
}

fn is_daemon(command: &str) -> Option<&str> {
    let mut words = command.split_whitespace().skip_while(|word| word.contains('='));
    let program = words.next()?;
    let goes_on = ["registry", "allocator", "proxy", "hello-world-server"].contains(&program);
    goes_on.then_some(program)
}

#[tokio::test]
async fn the_readme_story_of_three_machines_is_true() -> anyhow::Result<()> {
    let machines = [Machine::new()?, Machine::new()?, Machine::new()?];
    let mut daemons: Vec<Daemon> = Vec::new();
    let mut here = Here::default();
    let mut asked = Vec::new();
    for typed in story() {
        let machine = &machines[typed.machine];
        let command = here.text(&typed.command);
        let Some(program) = is_daemon(&typed.command) else {
            // Typed by hand, a second lies between this and what it needs: an external
            // service is announced once its program has been looked at.
            let said = eventually(&command, async || {
                let said = machine.prints(&command).await?;
                anyhow::ensure!(typed.printed.is_empty() || said == typed.printed, "{said}");
                Ok(said)
            })
            .await;
            asked.push((typed.command, said));
            continue;
        };
        let mut daemon = machine.start(&command).await?;
        if program == "hello-world-server" {
            let look = format!("curl -s http://127.0.0.1:{}/hello", here.ports["8080"]);
            eventually("the program", async || machine.prints(&look).await).await;
        } else {
            daemon.waits_for_requests().await?;
            let bootstraps = daemon.line("bootstraps")?;
            let registry = program == "registry";
            assert_eq!(bootstraps, if registry { "none configured" } else { "1 of 1 reached" });
        }
        if program == "registry" {
            here.registry = daemon.line("PeerId")?;
            // Each line that the README shows is one that is printed, and the other way round.
            let shown = here.text(&typed.printed);
            let shown: Vec<_> = shown.lines().map(stable).collect();
            let out = daemon.out();
            let printed: Vec<_> = out.lines().map(stable).collect();
            assert_eq!(printed, shown, "the README shows another report than {out}");
        }
        daemons.push(daemon);
    }

    let said = |what: &str| -> anyhow::Result<&str> {
        let (_, said) =
            asked.iter().find(|(command, _)| command.starts_with(what)).context("it")?;
        Ok(said)
    };
    let curls = asked.iter().filter(|(command, _)| command.starts_with("curl"));
    assert_eq!(curls.filter(|(_, said)| said == "Hello, world\n").count(), 2);
    let peers = said("lcactl peers")?;
    for row in ["registry ", "allocator ", "proxy,external ", "this node"] {
        assert!(peers.contains(row), "no {row} in {peers}");
    }
    let instances = said("lcactl instances")?;
    assert!(
        instances.contains("hello-world-server") && instances.contains("my-app"),
        "{instances}"
    );
    assert!(said("lcactl doctor")?.contains("answered 200"), "{asked:?}");

    // Each is asked to stop, ends with 0 and leaves nothing.
    for daemon in daemons.iter_mut().rev() {
        daemon.stop().await?;
    }
    for machine in &machines {
        assert_eq!(machine.processes(), [0; 0], "something is left running");
        assert_eq!(machine.sockets(), 0, "a socket is left");
    }
    Ok(())
}

/// What a line of a report says on every machine: not which commit it was built of, nor
/// where its user keeps things.
fn stable(line: &str) -> &str {
    let line = line.split(" (").next().unwrap_or(line);
    ["local API", "data"].into_iter().find(|label| line.starts_with(label)).unwrap_or(line)
}
