//! A ride as a picture: how far the buses are and which one serves, and below it what
//! requests took.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use lca_tests::mobility::{BUSES, Recording, Sample};
use plotters::prelude::*;

/// Points a line has at most: what a picture of this width can show.
const POINTS: usize = 300;
const SIZE: (u32, u32) = (960, 640);
const COLOURS: [RGBColor; BUSES] =
    [RGBColor(31, 119, 180), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];
const LIMIT: RGBColor = RGBColor(214, 39, 40);
const STAYS: RGBColor = RGBColor(150, 150, 150);

/// Draws `recording` into a file.
pub(super) fn draw(recording: &Recording, path: &Path) -> anyhow::Result<()> {
    let mut svg = String::new();
    picture(recording, SVGBackend::with_string(&mut svg, SIZE).into_drawing_area())
        .map_err(|error| anyhow!("drawing: {error}"))?;
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn picture(recording: &Recording, root: Area<'_>) -> Drawn {
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    distances(recording, &upper)?;
    latencies(recording, &lower)?;
    root.present()?;
    Ok(())
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The RTT of each bus; the one that serves is drawn thick, by what was measured.
fn distances(recording: &Recording, area: &Area<'_>) -> Drawn {
    let ride = &recording.ride;
    let length = ride.length.as_secs_f64();
    let mut chart = ChartBuilder::on(area)
        .caption("RTT from the sensor to each bus; thick: the bus that serves", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..length, 0.0..ms(ride.hard) * 1.25)?;
    chart.configure_mesh().x_desc("s").y_desc("ms").light_line_style(WHITE).draw()?;
    for (limit, name) in [(ride.soft, "soft"), (ride.hard, "hard")] {
        let line = [(0.0, ms(limit)), (length, ms(limit))];
        chart
            .draw_series(DashedLineSeries::new(line, 6, 4, LIMIT.stroke_width(1)))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], LIMIT));
    }
    for (bus, colour) in COLOURS.iter().enumerate() {
        let at = |n: usize| ride.length.mul_f64(n as f64 / POINTS as f64);
        let line = (0..=POINTS).map(|n| (at(n).as_secs_f64(), ms(ride.rtt(bus, at(n)))));
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(line, colour.mix(0.5)))?
            .label(format!("bus {}", bus + 1))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    // A part of the line for each stretch that one bus serves.
    let each = (recording.moving.len() / POINTS).max(1);
    let mut stretch: (usize, Vec<(f64, f64)>) = (usize::MAX, Vec::new());
    let mut stretches = Vec::new();
    for sample in recording.moving.iter().step_by(each) {
        let Ok(bus) = sample.bus else { continue };
        if stretch.0 != bus {
            stretches.push(std::mem::replace(&mut stretch, (bus, Vec::new())));
        }
        let next = recording.measured.partition_point(|one| one.at < sample.at);
        let rtt = recording.measured.get(next).and_then(|one| one.rtts[bus]);
        stretch.1.extend(rtt.map(|rtt| (sample.at.as_secs_f64(), ms(rtt))));
    }
    stretches.push(stretch);
    for (bus, line) in stretches.into_iter().filter(|(_, line)| !line.is_empty()) {
        chart.draw_series(LineSeries::new(line, COLOURS[bus].stroke_width(3)))?;
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

/// The slowest request of each short while, of both clients.
fn latencies(recording: &Recording, area: &Area<'_>) -> Drawn {
    let ride = &recording.ride;
    let length = ride.length.as_secs_f64();
    let lines = [
        ("stays with its first choice", STAYS, slowest(&recording.staying)),
        ("moves", RGBColor(0, 0, 0), slowest(&recording.moving)),
    ];
    let most = lines.iter().flat_map(|(.., line)| line).map(|(_, ms)| *ms).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("the slowest request of each short while", ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..length, 0.0..most.max(ms(ride.hard)) * 1.1)?;
    chart.configure_mesh().x_desc("s").y_desc("ms").light_line_style(WHITE).draw()?;
    for (name, colour, line) in lines {
        chart
            .draw_series(LineSeries::new(line, colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

fn slowest(samples: &[Sample]) -> Vec<(f64, f64)> {
    let each = samples.len().div_ceil(POINTS).max(1);
    let worst = |some: &[Sample]| {
        let slowest = some.iter().max_by_key(|sample| sample.latency)?;
        Some((slowest.at.as_secs_f64(), ms(slowest.latency)))
    };
    samples.chunks(each).filter_map(worst).collect()
}
