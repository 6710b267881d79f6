//! `--link NAME=RTT[±JITTER][,stall=P%]:NODES`: how far the nodes of `up` are from each other.
//!
//! Node 0 is where the front is, with the registry; nodes 1 to N are the allocators. A link
//! says how far its nodes are from node 0. The picture is a star: nodes of one link are in
//! one place, with nothing added between them; from a node of one link to a node of another
//! it is the sum of both; nodes of no link are in the place of node 0.

use std::{collections::BTreeSet, fmt::Write as _, str::FromStr, time::Duration};

use lca::{Error, Kind, Result, units};
use lca_node::link::{Profile, course::Course};

/// A node further away counts as silent: an answer to a probe after more is lost.
pub(super) const LONGEST: Duration = Duration::from_secs(1);
/// Most characters of a name: a column of a table.
const LONGEST_NAME: usize = 16;

/// One `--link`.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// What it is called in lists.
    name: String,
    profile: Profile,
    nodes: Vec<u8>,
}

/// What lies between two nodes, by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) name: String,
    pub(super) between: [u8; 2],
    pub(super) course: Course,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "write it as NAME=RTT[±JITTER][,stall=P%]:NODES, such as far=90ms±5ms,stall=1%:4,5";
        let (what, nodes) = text.rsplit_once(':').ok_or(FORM)?;
        let (name, what) = what.split_once('=').ok_or(FORM)?;
        let mut parts = what.split(',');
        let (rtt, jitter) =
            match parts.next().unwrap_or_default().replace("+-", "±").split_once('±') {
                Some((rtt, jitter)) => (time(rtt)?, time(jitter)?),
                None => (time(what.split(',').next().unwrap_or_default())?, Duration::ZERO),
            };
        let stall = match (parts.next(), parts.next()) {
            (None, _) => 0.0,
            (Some(part), None) => share(part.strip_prefix("stall=").ok_or(FORM)?)?,
            (Some(_), Some(_)) => return Err(FORM.into()),
        };
        Ok(Self {
            name: self::name(name)?,
            profile: profile(rtt, jitter, stall)?,
            nodes: numbers(nodes)?,
        })
    }
}

/// A name for a link.
pub(super) fn name(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(known) {
        let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
        return Err(format!(
            "a link's name is 1 to {LONGEST_NAME} of a-z, 0-9 and -, not {shown:?}"
        ));
    }
    Ok(text.to_owned())
}

/// A round-trip time or a jitter.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = units::duration(text).map_err(|reason| format!("{text:?}: {reason}"))?;
    if time > LONGEST {
        let longest = units::show_duration(LONGEST);
        return Err(format!("{text} is above {longest}: nodes further away count as silent"));
    }
    Ok(time)
}

/// `1%`, `0.5%`, as a share of one.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.strip_suffix('%').filter(|number| {
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        digits(whole) && digits(decimals)
    });
    let percent = number.and_then(|number| number.parse::<f64>().ok());
    percent
        .filter(|percent| *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("a stall is a share such as 1% or 0.5%, not {text:?}"))
}

/// A round trip of `rtt` more or less by up to `jitter`.
pub(super) fn profile(rtt: Duration, jitter: Duration, stall: f64) -> Result<Profile, String> {
    if jitter > rtt {
        let (rtt, jitter) = (units::show_duration(rtt), units::show_duration(jitter));
        return Err(format!("the jitter of {jitter} is above the RTT of {rtt}"));
    }
    Ok(Profile { delay: rtt - jitter, jitter: jitter * 2, stall, cut: false })
}

/// `1,2`, `4-5`, `1,4-6`: in order, none twice.
fn numbers(text: &str) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u8>().ok().filter(|_| digits)
        };
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!(
                "the nodes of a link are numbers, such as 1,2 or 4-6, not {text:?}"
            ));
        };
        if first == 0 {
            return Err(
                "node 0 is where the front is: a link says how far others are from it".into()
            );
        }
        if first > last {
            return Err(format!("{part} is no range: write the smaller number first"));
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("node {} is named twice", pair[0])),
        None => Ok(all),
    }
}

/// What the links come to between each two of nodes 0 to `nodes`.
pub(super) fn spans(links: &[Link], nodes: u8) -> Result<Vec<Span>> {
    let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for link in links {
        let wrong = if !names.insert(&link.name) {
            Some(format!("the link {} is there twice", link.name))
        } else if let Some(node) = link.nodes.iter().find(|node| **node > nodes) {
            let name = &link.name;
            Some(format!("the link {name} names node {node}, but there are nodes 1 to {nodes}"))
        } else {
            let twice = link.nodes.iter().find(|node| !taken.insert(**node));
            twice.map(|node| format!("node {node} is on two links; it can be on one"))
        };
        if let Some(wrong) = wrong {
            let hint = "--nodes says how many allocators there are";
            return Err(Error::new(Kind::InvalidArgument, wrong).hint(hint));
        }
    }
    let link_of = |node: u8| links.iter().find(|link| link.nodes.contains(&node));
    let mut spans = Vec::new();
    for a in 0..=nodes {
        for b in a + 1..=nodes {
            let (name, profile) = match (link_of(a), link_of(b)) {
                (None, None) => continue,
                (Some(one), None) | (None, Some(one)) => (one.name.clone(), one.profile),
                (Some(one), Some(other)) if one.name == other.name => continue,
                (Some(one), Some(other)) => {
                    (format!("{}+{}", one.name, other.name), sum(one.profile, other.profile))
                }
            };
            spans.push(Span { name, between: [a, b], course: Course::steady(profile) });
        }
    }
    Ok(spans)
}

/// One after the other.
fn sum(a: Profile, b: Profile) -> Profile {
    Profile {
        delay: a.delay + b.delay,
        jitter: a.jitter + b.jitter,
        stall: 1.0 - (1.0 - a.stall) * (1.0 - b.stall),
        cut: a.cut || b.cut,
    }
}

/// `15.0 ms ± 3.0 ms, 1 % of writes stall`.
pub(super) fn show(profile: &Profile) -> String {
    if profile.cut {
        return "cut".into();
    }
    let mut text = units::show_duration(profile.delay + profile.jitter / 2);
    if !profile.jitter.is_zero() {
        let _infallible = write!(text, " ± {}", units::show_duration(profile.jitter / 2));
    }
    if profile.stall > 0.0 {
        let percent = (profile.stall * 1e4).round() / 1e2;
        let _infallible = write!(text, ", {percent} % of writes stall");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn link(text: &str) -> Link {
        text.parse().expect(text)
    }

    #[test]
    fn a_link_is_read_as_people_write_it() {
        for text in ["metro=15ms±3ms,stall=0.5%:1,4-6", "metro=15ms+-3ms,stall=0.5%:4-6,1"] {
            let Link { name, profile, nodes } = link(text);
            assert_eq!((name.as_str(), &nodes[..]), ("metro", &[1, 4, 5, 6][..]), "{text}");
            assert_eq!((profile.delay, profile.jitter), (ms(12), ms(6)));
            assert!((profile.stall - 0.005).abs() < 1e-9);
            assert_eq!(show(&profile), "15.0 ms ± 3.0 ms, 0.5 % of writes stall");
        }
        assert_eq!(link("edge=2ms:1").profile, Profile::rtt(ms(2)));
        assert_eq!(show(&link("far=90ms,stall=1%:4,5").profile), "90.0 ms, 1 % of writes stall");
    }

    #[test]
    fn what_makes_no_link_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "write it as"),
            ("edge=2ms", "write it as"),
            ("2ms:1", "write it as"),
            ("=2ms:1", "name"),
            ("Edge=2ms:1", "name"),
            ("far-beyond-the-sea=2ms:1", "name"),
            ("edge=2:1", "with a unit"),
            ("edge=:1", "with a unit"),
            ("edge=-2ms:1", "with a unit"),
            ("edge=2ms±:1", "with a unit"),
            ("edge=2ms±3ms:1", "above the RTT"),
            ("edge=2s:1", "above 1.0 s"),
            ("edge=2ms,stall=1:1", "share"),
            ("edge=2ms,stall=101%:1", "share"),
            ("edge=2ms,stall=-1%:1", "share"),
            ("edge=2ms,stall=1e1%:1", "share"),
            ("edge=2ms,loss=1%:1", "write it as"),
            ("edge=2ms,stall=1%,stall=2%:1", "write it as"),
            ("edge=2ms:", "numbers"),
            ("edge=2ms:1,", "numbers"),
            ("edge=2ms:+1", "numbers"),
            ("edge=2ms:300", "numbers"),
            ("edge=2ms:0,1", "node 0"),
            ("edge=2ms:3-1", "no range"),
            ("edge=2ms:1,1-2", "twice"),
        ] {
            let error = text.parse::<Link>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
        for (links, reason) in [
            (["edge=2ms:1", "edge=3ms:2"], "there twice"),
            (["edge=2ms:1", "far=3ms:1"], "two links"),
            (["edge=2ms:1", "far=3ms:4"], "nodes 1 to 3"),
        ] {
            let error = spans(&links.map(link), 3).unwrap_err().to_string();
            assert!(error.contains(reason), "{links:?}: {error}");
        }
    }

    #[test]
    fn places_form_a_star_around_the_front() {
        let links = ["edge=2ms:1,2", "far=90ms±10ms,stall=10%:3"].map(link);
        let spans = spans(&links, 4).unwrap();
        let between = |a, b| {
            let span = spans.iter().find(|span| span.between == [a, b])?;
            Some((span.name.as_str(), show(&span.course.at(Duration::ZERO))))
        };
        let said = |name, text: &str| Some((name, text.to_owned()));
        assert_eq!(between(0, 1), said("edge", "2.0 ms"));
        assert_eq!(between(1, 2), None, "one place");
        assert_eq!(between(1, 3), said("edge+far", "92.0 ms ± 10.0 ms, 10 % of writes stall"));
        assert_eq!(between(1, 4), said("edge", "2.0 ms"), "node 4 is where the front is");
        assert_eq!(between(0, 4), None);
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in "\\PC{0,40}|[a-z]{1,3}=[0-9]{1,4}ms(±[0-9]{1,4}ms)?(,stall=[0-9.]{1,5}%)?:[0-9,-]{1,9}") {
            if let Ok(link) = text.parse::<Link>() {
                let _any = spans(&[link], 32);
            }
        }
    }
}
