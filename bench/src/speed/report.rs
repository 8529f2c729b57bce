//! From samples to a table, a file and plots.

use std::fmt::Write;
use std::path::Path;

use plotters::prelude::*;
use weft_router::error::{Doing, Failure, Result};

use super::pairs::Underlay;
use super::{Options, Sample, Series};

/// A figure: how to take it from a sample, what it is called, how many decimals it deserves.
type Column = (&'static str, fn(&Sample) -> f64, usize);

const COLUMNS: [Column; 12] = [
    ("TCP 1 stream Gbit/s", |s| s.tcp, 2),
    ("CPU s/GB", |s| s.cpu_per_gigabyte, 2),
    ("TCP 4 streams Gbit/s", |s| s.tcp_four, 2),
    ("reordered", |s| s.reorderings, 0),
    ("UDP 64 B kpps", |s| s.small_kpps, 0),
    ("UDP 1,400 B kpps", |s| s.large_kpps, 0),
    ("RTT p50 µs", |s| s.rtt_p50, 0),
    ("RTT p99 µs", |s| s.rtt_p99, 0),
    ("UDP answer p50 µs", |s| s.answer_p50, 0),
    ("UDP answer p99 µs", |s| s.answer_p99, 0),
    ("beside TCP p50 µs", |s| s.busy_p50, 0),
    ("beside TCP p99 µs", |s| s.busy_p99, 0),
];
/// What the others are compared with.
const YARDSTICK: &str = "kernel VXLAN, in clear";
/// A yardstick that moves by more than this, or a machine whose CPU goes elsewhere by more, makes a run worth nothing.
const MAX_SPREAD: f64 = 0.3;
const MAX_STEAL: f64 = 0.05;

fn spread(series: &Series, value: fn(&Sample) -> f64) -> Option<[f64; 3]> {
    spread_of(series.samples.iter().map(value))
}

/// Median, least and most of those that are numbers; none if none is.
pub fn spread_of(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some([(lower + upper) / 2.0, *values.first()?, *values.last()?])
}

/// Prints everything, and writes it where it was asked for.
pub fn print(all: &[Series], options: &Options) -> Result<()> {
    let text = markdown(all, options);
    println!("{text}");
    let Some(dir) = &options.out else { return Ok(()) };
    let what = |name: &str| format!("cannot write {}", dir.join(name).display());
    std::fs::write(dir.join("performance-table.md"), &text).doing(|| what("performance-table.md"))?;
    let file = std::fs::File::create(dir.join("performance.json")).doing(|| what("performance.json"))?;
    let series: Vec<_> = all.iter().map(as_json).collect();
    let machine = serde_json::json!({ "cores": cores(), "cpu": cpu(), "kernel": kernel() });
    let whole = serde_json::json!({ "machine": machine, "rounds": options.rounds, "seconds": options.seconds, "series": series });
    serde_json::to_writer_pretty(file, &whole).doing(|| what("performance.json"))?;
    plot(&dir.join("performance-tcp.svg"), "TCP, one stream, Gbit/s", all, |s| s.tcp)?;
    plot(&dir.join("performance-cpu.svg"), "CPU of the whole machine, seconds a gigabyte", all, |s| s.cpu_per_gigabyte)
}

fn as_json(series: &Series) -> serde_json::Value {
    serde_json::json!({
        "name": series.name,
        "version": series.version,
        "underlay": series.underlay.to_string(),
        "samples": series.samples,
        "rss_mb": series.rss,
    })
}

fn markdown(all: &[Series], options: &Options) -> String {
    let mut text = format!(
        "{} rounds, {} s of TCP each; {} cores ({}, Linux {}) shared by both hosts and both ends; median (least - most)\n",
        options.rounds,
        options.seconds,
        cores(),
        cpu(),
        kernel()
    );
    for underlay in [Underlay::Veth, Underlay::Nic] {
        let here: Vec<&Series> = all.iter().filter(|series| series.underlay == underlay).collect();
        let yardstick = here.iter().find(|series| series.name == YARDSTICK).copied();
        let columns: Vec<Column> = COLUMNS
            .into_iter()
            .filter(|(_, value, _)| here.iter().any(|series| spread(series, *value).is_some()))
            .collect();
        let names: String = columns.iter().map(|(name, ..)| format!(" {name} |")).collect();
        let _ =
            writeln!(text, "\nUnderlay: {underlay}\n\n| |{names} RSS MB |\n|---|{}---|", "---|".repeat(columns.len()));
        for series in &here {
            let _ = write!(text, "| {} {} |", series.name, series.version);
            for (_, value, digits) in &columns {
                match spread(series, *value) {
                    Some([median, least, most]) => {
                        let _ = write!(text, " {median:.digits$} ({least:.digits$} - {most:.digits$})");
                        let base =
                            yardstick.filter(|base| base.name != series.name).and_then(|base| spread(base, *value));
                        if let Some([base, ..]) = base {
                            let _ = write!(text, " **{:.2}x**", median / base);
                        }
                        text.push_str(" |");
                    }
                    None => text.push_str(" |"),
                }
            }
            let rss = series.rss.iter().map(|rss| format!("{rss:.0}")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, " {rss} |");
        }
        if let Some(reason) = yardstick.and_then(noise) {
            let _ = writeln!(text, "\nToo noisy to count: {reason}.");
        }
    }
    text
}

/// Why a run is worth nothing, if it is.
fn noise(yardstick: &Series) -> Option<String> {
    let [median, least, most] = spread(yardstick, |sample| sample.tcp)?;
    let [_, _, steal] = spread(yardstick, |sample| sample.steal)?;
    if (most - least) / median > MAX_SPREAD {
        return Some(format!("{YARDSTICK} went from {least:.2} to {most:.2} Gbit/s"));
    }
    (steal > MAX_STEAL).then(|| format!("{:.0} % of the CPU's time went to other machines", steal * 100.0))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.unwrap_or("").trim_start_matches(['\t', ' ', ':']).to_owned()
}

fn kernel() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Horizontal bars, one pair of colours for the two underlays, with least and most as a thin line.
fn plot(path: &Path, title: &str, all: &[Series], value: fn(&Sample) -> f64) -> Result<()> {
    draw(path, title, all, value).map_err(|error| Failure::new(format!("cannot draw {}: {error}", path.display())))
}

fn draw(
    path: &Path,
    title: &str,
    all: &[Series],
    value: fn(&Sample) -> f64,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    const ROW: i32 = 44;
    const LEFT: i32 = 210;
    const WIDTH: i32 = 860;
    const BARS: i32 = WIDTH - LEFT - 70;
    let mut names: Vec<&str> = Vec::new();
    for series in all {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    let most = all.iter().filter_map(|series| spread(series, value)).map(|[.., most]| most).fold(0.0, f64::max);
    let x = |amount: f64| LEFT + (f64::from(BARS) * amount / most.max(f64::MIN_POSITIVE)) as i32;
    let height = 70 + ROW * names.len() as i32;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title, (12, 12), ("sans-serif", 18)))?;
    let colours = [(Underlay::Veth, RGBColor(38, 92, 153)), (Underlay::Nic, RGBColor(228, 138, 44))];
    for (number, (underlay, colour)) in (0..).zip(colours) {
        let left = LEFT + number * 200;
        area.draw(&Rectangle::new([(left, 42), (left + 12, 54)], colour.filled()))?;
        area.draw(&Text::new(underlay.to_string(), (left + 18, 41), ("sans-serif", 13)))?;
    }
    for (row, name) in (0..).zip(names) {
        let top = 68 + row * ROW;
        area.draw(&Text::new(name, (12, top + 10), ("sans-serif", 14)))?;
        for (number, (underlay, colour)) in (0..).zip(colours) {
            let series = all.iter().find(|series| series.name == name && series.underlay == underlay);
            let Some([median, least, most]) = series.and_then(|series| spread(series, value)) else { continue };
            let (upper, lower) = (top + number * 18, top + number * 18 + 15);
            area.draw(&Rectangle::new([(LEFT, upper), (x(median), lower)], colour.filled()))?;
            let middle = (upper + lower) / 2;
            area.draw(&PathElement::new([(x(least), middle), (x(most), middle)], BLACK))?;
            area.draw(&Text::new(format!("{median:.2}"), (x(most) + 6, upper), ("sans-serif", 12)))?;
        }
    }
    area.present()?;
    Ok(())
}
