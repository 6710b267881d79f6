//! A constant stream of requests through one proxy while what serves them is taken away:
//! how many fail, and for how long nobody is answered.
//!
//! Requests are sent by the clock, whether or not earlier ones were answered, and each is
//! timed from when it was due, so that those which could not be sent in time count as
//! well. All of them are GETs, which may be sent twice. Every daemon is a process of its own.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use lca::api::proto::Instance;
use lca_tests::{http as client, processes};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    fleet::Fleet,
    machine,
    stats::{Samples, ms},
};

const SERVICE: &str = "failover";
/// A request that takes longer has failed: longer than it takes to notice that a machine is
/// gone and to start the program elsewhere, several times over.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests under way at a time: as many as come in while one machine is found silent, and
/// one in `PATIENCE`, at the usual rate.
const UNDER_WAY: usize = 3500;
/// The longest gap the design allows where a process dies and another is there.
const GAP: Duration = Duration::from_millis(100);
/// Until a silent machine is known to be.
const DETECTION: Duration = Duration::from_secs(3);
/// How much longer than detection and a cold start a gap may be: two timers of the probe
/// and a connection.
const MARGIN: Duration = Duration::from_secs(1);

/// Options of `failover`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests a second
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds before the loss: longer than what an instance has to live to count as started
    #[arg(long, default_value_t = 12)]
    before: u64,
    /// Seconds after it
    #[arg(long, default_value_t = 10)]
    after: u64,
    /// Milliseconds the program needs until it listens
    #[arg(long, default_value_t = 100)]
    start_delay: u64,
    /// Only this loss [default: each]
    #[arg(long, value_enum)]
    loss: Option<Loss>,
}

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Loss {
    /// The process of the instance that serves is killed.
    Process,
    /// Its allocator is killed, and everything it runs.
    Machine,
    /// Allocator and instance are stopped in the middle of what they do: connections stay
    /// open, new ones are made by the kernel, and nothing is ever answered.
    Network,
}

impl Loss {
    const ALL: [Self; 3] = [Self::Process, Self::Machine, Self::Network];

    const fn words(self) -> &'static str {
        match self {
            Self::Process => "process killed",
            Self::Machine => "machine gone",
            Self::Network => "machine silent",
        }
    }

    /// The longest time without an answer that will do.
    fn aim(self, second: bool, cold: Duration) -> Duration {
        match (self, second) {
            (Self::Process, true) => GAP,
            (Self::Machine | Self::Network, true) => DETECTION + MARGIN,
            (_, false) => DETECTION + cold + MARGIN,
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    println!(
        "failover, {} GETs a second for {} s, the loss after {} s, a program that needs {} ms, on {}\n",
        args.rate,
        args.before + args.after,
        args.before,
        args.start_delay,
        machine::describe()
    );
    println!(
        "| lost | second instance | answered | failed | longest gap before ms | longest gap since ms \
         | allowed ms | p50 ms | p99 ms | longest ms |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    let (mut reached, mut errors) = (true, BTreeMap::new());
    for loss in Loss::ALL.into_iter().filter(|loss| args.loss.is_none_or(|only| only == *loss)) {
        for second in [true, false] {
            let (seen, struck, cold) = lose(&args, loss, second).await?;
            let aim = loss.aim(second, cold);
            let (before, gap) = seen.longest_gaps(struck);
            let took = Samples::new(seen.answered.iter().map(|(due, at)| *at - *due).collect());
            println!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                loss.words(),
                if second { "yes" } else { "no" },
                seen.answered.len(),
                seen.failed.len(),
                ms(before),
                ms(gap),
                ms(aim),
                ms(took.percentile(50)),
                ms(took.percentile(99)),
                ms(took.percentile(100))
            );
            reached &= seen.failed.is_empty() && gap <= aim;
            seen.failed.into_iter().for_each(|error| *errors.entry(error).or_insert(0) += 1);
        }
    }
    for (error, times) in errors.into_iter().take(8) {
        println!("\n{times} times: {error}");
    }
    let word = if reached { "reached" } else { "NOT reached" };
    println!("\naim of the design (no failed request, no longer gap than allowed): {word}");
    ensure!(reached, "the aim is not reached");
    Ok(())
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    /// When each request was due and when it was answered.
    answered: Vec<(Instant, Instant)>,
    failed: Vec<String>,
}

impl Seen {
    /// The longest time in which no answer came, before the loss and since then. The first
    /// is what the machine itself does to a stream of requests.
    fn longest_gaps(&self, struck: Instant) -> (Duration, Duration) {
        let mut at: Vec<_> = self.answered.iter().map(|(_, at)| *at).collect();
        at.sort_unstable();
        let gaps = || at.windows(2).map(|pair| (pair[1], pair[1] - pair[0]));
        let longest = |since: bool| {
            gaps().filter(|(end, _)| (*end >= struck) == since).map(|(_, gap)| gap).max()
        };
        (longest(false).unwrap_or_default(), longest(true).unwrap_or_default())
    }
}

/// One loss, when it was, and how long a cold start took before it.
async fn lose(args: &Args, loss: Loss, second: bool) -> anyhow::Result<(Seen, Instant, Duration)> {
    let fleet = Fleet::start(2, 1).await?;
    fleet.add(SERVICE, &["--start-delay", &args.start_delay.to_string()]).await?;
    let front = fleet.front(0)?;
    let begin = Instant::now();
    let first = client::get(front, &format!("/{SERVICE}/hello")).await?;
    ensure!(first.status == 200, "{}", first.text());
    let cold = begin.elapsed();
    if second {
        let holder = fleet.instances(SERVICE).await.first().context("an instance")?.0;
        fleet.allocate(SERVICE, 1 - holder).await?;
    }
    let load = Load::start(front, args.rate);
    tokio::time::sleep(Duration::from_secs(args.before)).await;
    let (on, serving) = serving(&fleet, front).await?;
    let struck = Instant::now();
    strike(&fleet, loss, on, &serving)?;
    tokio::time::sleep(Duration::from_secs(args.after)).await;
    let seen = load.stop().await;
    Ok((seen, struck, cold))
}

/// The instance that most of a few requests go to, and its allocator.
async fn serving(fleet: &Fleet, front: SocketAddr) -> anyhow::Result<(usize, Instance)> {
    let mut named: HashMap<String, u32> = HashMap::new();
    for _ in 0..8 {
        let told = client::get(front, &format!("/{SERVICE}/env")).await?.text();
        let id = told.lines().find_map(|line| line.strip_prefix("LCA_INSTANCE_ID="));
        *named.entry(id.context("an id")?.to_owned()).or_default() += 1;
    }
    let most = named.into_iter().max_by_key(|(_, times)| *times).context("an answer")?.0;
    let all = fleet.instances(SERVICE).await;
    all.into_iter().find(|(_, one)| one.id == most).context("it is an allocator's")
}

fn strike(fleet: &Fleet, loss: Loss, on: usize, instance: &Instance) -> anyhow::Result<()> {
    let signal = |pid: i32, signal| -> anyhow::Result<()> {
        kill_process(Pid::from_raw(pid).context("a process id")?, signal)?;
        Ok(())
    };
    let daemon = i32::try_from(fleet.allocators[on].pid()?)?;
    let below = processes::below(&fleet.allocator_dir(on));
    match loss {
        Loss::Process => signal(i32::try_from(instance.pid)?, Signal::KILL),
        Loss::Machine | Loss::Network => {
            let how = if loss == Loss::Machine { Signal::KILL } else { Signal::STOP };
            signal(daemon, how)?;
            below.into_iter().try_for_each(|pid| signal(pid, how))
        }
    }
}

/// Clients that send by the clock.
struct Load {
    stop: Arc<Semaphore>,
    running: tokio::task::JoinHandle<Seen>,
}

impl Load {
    fn start(front: SocketAddr, rate: u32) -> Self {
        let stop = Arc::new(Semaphore::new(0));
        let running = tokio::spawn(Self::run(front, rate, stop.clone()));
        Self { stop, running }
    }

    async fn stop(self) -> Seen {
        self.stop.add_permits(1);
        self.running.await.unwrap_or_default()
    }

    async fn run(front: SocketAddr, rate: u32, stop: Arc<Semaphore>) -> Seen {
        let clients = Arc::new(Clients { front, idle: Mutex::default() });
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut open: JoinSet<(Instant, Instant, anyhow::Result<()>)> = JoinSet::new();
        let mut seen = Seen::default();
        let mut going = true;
        loop {
            tokio::select! {
                _ = stop.acquire(), if going => going = false,
                due = ticks.tick(), if going && open.len() < UNDER_WAY => {
                    let clients = clients.clone();
                    open.spawn(async move {
                        let asked = timeout(PATIENCE, clients.get()).await;
                        let answer = asked.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"));
                        (due, Instant::now(), answer)
                    });
                }
                Some(ended) = open.join_next() => match ended {
                    Ok((due, at, Ok(()))) => seen.answered.push((due, at)),
                    Ok((_, _, Err(error))) => seen.failed.push(format!("{error:#}")),
                    Err(error) => seen.failed.push(error.to_string()),
                },
                else => return seen,
            }
        }
    }
}

type Sender = http1::SendRequest<Empty<bytes::Bytes>>;

/// Connections to the front that are kept open, as a client's are.
struct Clients {
    front: SocketAddr,
    idle: Mutex<Vec<Sender>>,
}

impl Clients {
    async fn get(&self) -> anyhow::Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut sender = match idle.filter(|sender| sender.is_ready()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.front).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) =
                    http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let request = http::Request::get(format!("/{SERVICE}/hello"))
            .header("host", self.front.to_string())
            .body(Empty::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        // What differs in each is of no use in a list of kinds.
        let said = text.split("\"instance\"").next().unwrap_or_default();
        ensure!(status == 200, "{status}: {said}");
        if sender.ready().await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gaps_are_between_answers_in_the_order_they_came() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let seen = Seen {
            answered: vec![(at(0), at(1)), (at(2), at(90)), (at(4), at(5)), (at(6), at(80))],
            failed: Vec::new(),
        };
        let ms = Duration::from_millis;
        assert_eq!(seen.longest_gaps(at(6)), (ms(4), ms(75)));
        assert_eq!(seen.longest_gaps(at(85)), (ms(75), ms(10)));
        assert_eq!(Seen::default().longest_gaps(begin), (Duration::ZERO, Duration::ZERO));
    }
}
