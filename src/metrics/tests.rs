use http::StatusCode;

use super::*;
use crate::{Kind, ServiceName};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// The value of the line that begins with `series`, if there is one.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for Family { name, kind, labels, help } in Metrics::default().families() {
        assert!(name.starts_with("lca_"), "{name}");
        let characters =
            |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || "_2".contains(c));
        assert!(characters(name) && labels.iter().all(|label| characters(label)), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
        assert!(*kind != "histogram" || name.ends_with("_seconds"), "{name}");
        for taken in ["_sum", "_count", "_bucket", "_milliseconds"] {
            assert!(!name.ends_with(taken), "{name}");
        }
        assert!(help.ends_with('.') && help.len() > 20, "{name}: {help}");
    }
}

#[test]
fn every_request_is_counted_once_with_its_outcome() {
    let metrics = Metrics::default();
    let hello = metrics.service(&name("hello"));
    for status in [StatusCode::OK, StatusCode::NO_CONTENT, StatusCode::BAD_GATEWAY] {
        let mut exchange = Exchange::at_front(&metrics);
        exchange.is_for(&hello);
        exchange.ended(Ended::Answered(status));
    }
    let mut gone = Exchange::at_front(&metrics);
    gone.named(&name("hello"));
    drop(gone);
    Exchange::at_ingress(&metrics, hello).ended(Ended::Failed(Kind::Timeout));
    let front = |outcome| {
        value(
            &metrics,
            &format!(r#"lca_front_requests_total{{outcome="{outcome}",service="hello"}}"#),
        )
    };
    assert_eq!([front("2xx"), front("5xx"), front("cancelled")], [Some(2.0), Some(1.0), Some(1.0)]);
    let took = r#"lca_front_request_duration_seconds_count{service="hello"}"#;
    assert_eq!(value(&metrics, took), Some(3.0), "whoever left did not see how long it takes");
    let late = r#"lca_ingress_requests_total{outcome="timeout",service="hello"}"#;
    assert_eq!(value(&metrics, late), Some(1.0));
}

#[test]
fn what_clients_ask_for_never_becomes_a_label() {
    let metrics = Metrics::default();
    for number in 0..1000 {
        let mut exchange = Exchange::at_front(&metrics);
        exchange.named(&name(&format!("guess-{number}")));
        exchange.ended(Ended::Failed(Kind::NotFound));
    }
    let text = metrics.text();
    assert!(!text.contains("guess"), "{text}");
    let none = r#"lca_front_requests_total{outcome="not-found",service="_none"}"#;
    assert_eq!(value(&metrics, none), Some(1000.0));
}

#[test]
fn services_beyond_the_limit_are_counted_together() {
    let metrics = Metrics::default();
    for number in 0..MAX_SERVICES + 10 {
        let mut exchange = Exchange::at_front(&metrics);
        exchange.is_for(&metrics.service(&name(&format!("service-{number}"))));
        exchange.ended(Ended::Answered(StatusCode::OK));
    }
    let other = r#"lca_front_requests_total{outcome="2xx",service="_other"}"#;
    assert_eq!(value(&metrics, other), Some(10.0));
    assert_eq!(metrics.service(&name("service-0")).label(), "service-0", "the first ones stay");
    let labels = metrics.text().matches("lca_front_request_duration_seconds_count{").count();
    assert_eq!(labels, MAX_SERVICES + 1);
}

#[test]
fn clones_count_together_and_two_daemons_apart() {
    let (one, other) = (Metrics::default(), Metrics::default());
    one.clone().node.misses.inc();
    assert_eq!(value(&one, "lca_find_misses_total"), Some(1.0));
    assert_eq!(value(&other, "lca_find_misses_total"), Some(0.0));
}

#[test]
fn what_is_held_counts_until_it_is_dropped() {
    let metrics = Metrics::default();
    let held = Held::new(&metrics.front.connections);
    assert_eq!(value(&metrics, "lca_front_connections"), Some(1.0));
    drop(held);
    assert_eq!(value(&metrics, "lca_front_connections"), Some(0.0));
}

/// The rows of docs/metrics.md, as (name, type, labels).
fn documented() -> Vec<(String, String, String)> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `lca_"));
    let rows = rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().replace('`', ""));
        let mut next = || cells.next().unwrap_or_default();
        (format!("lca_{}", next()), next(), next())
    });
    rows.collect()
}

#[test]
fn the_documentation_lists_exactly_what_there_is() {
    let metrics = Metrics::default();
    let mut there: Vec<_> = metrics
        .families()
        .iter()
        .map(|family| (family.name.to_owned(), family.kind.to_owned(), family.labels.join(", ")))
        .collect();
    let mut documented = documented();
    there.sort();
    documented.sort();
    assert_eq!(documented, there, "docs/metrics.md is to be brought up to date");
}
