//! Making families: each is registered, and described for the documentation, in one
//! call.

use prometheus::{
    HistogramOpts, Opts, Registry,
    core::{Collector, GenericCounterVec},
};

use super::{Counter, Counters, Gauge, Gauges, Histogram, Histograms};

/// What is known of a family whatever has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, by the conventions of Prometheus.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What its members are told apart by.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

/// The families of one daemon while they are made.
#[derive(Default)]
pub(super) struct Families {
    registry: Registry,
    made: Vec<Family>,
}

/// Why making a family cannot fail.
const CONSTANT: &str = "names and labels are constants of ours, valid and different (tested)";

impl Families {
    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::with_opts(Opts::new(name, help)).expect(CONSTANT);
        self.add("counter", name, &[], help, counter)
    }

    /// `values` are counted from zero; where they are not known beforehand, none.
    pub(super) fn counters(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        values: &[&str],
        help: &'static str,
    ) -> Counters {
        let counters: Counters =
            GenericCounterVec::new(Opts::new(name, help), labels).expect(CONSTANT);
        values.iter().for_each(|value| drop(counters.with_label_values(&[value])));
        self.add("counter", name, labels, help, counters)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::with_opts(Opts::new(name, help)).expect(CONSTANT);
        self.add("gauge", name, &[], help, gauge)
    }

    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        values: &[&str],
        help: &'static str,
    ) -> Gauges {
        let gauges = Gauges::new(Opts::new(name, help), labels).expect(CONSTANT);
        values.iter().for_each(|value| drop(gauges.with_label_values(&[value])));
        self.add("gauge", name, labels, help, gauges)
    }

    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        buckets: &[f64],
        help: &'static str,
    ) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(options).expect(CONSTANT);
        self.add("histogram", name, &[], help, histogram)
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        buckets: &[f64],
        help: &'static str,
    ) -> Histograms {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms = Histograms::new(options, labels).expect(CONSTANT);
        self.add("histogram", name, labels, help, histograms)
    }

    pub(super) fn finish(self) -> (Registry, Vec<Family>) {
        (self.registry, self.made)
    }

    fn add<C: Collector + Clone + 'static>(
        &mut self,
        kind: &'static str,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collector: C,
    ) -> C {
        self.registry.register(Box::new(collector.clone())).expect(CONSTANT);
        self.made.push(Family { name, kind, labels, help });
        collector
    }
}
