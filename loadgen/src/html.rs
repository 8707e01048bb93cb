//! The report as one HTML file: pictures as inline SVG, no script, nothing from elsewhere; readable in light and dark.

use std::fmt::Write;

use crate::plot;
use crate::report::{FaultSeen, Report, Slice, count};
use crate::sweep::{Point, Sweep};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
/// Room for the numbers of the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 40.0;

const STYLE: &str = "
:root { --text: #1c2733; --dim: #5b6775; --line: #d6dce3; --back: #ffffff; --one: #0b62b8; --two: #c2410c; --three: #0f7b4f; --fault: #b91c1c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6ebf1; --dim: #9aa7b5; --line: #38434f; --back: #14191f; --one: #6cb2ff; --two: #ff9d5c; --three: #5fd39c; --fault: #ff7b7b; }
}
body { color: var(--text); background: var(--back); font: 15px/1.5 system-ui, sans-serif; max-width: 780px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } td { padding: .15em 1.2em .15em 0; vertical-align: top; } td:first-child { color: var(--dim); white-space: nowrap; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 1; } .curve { fill: none; stroke-width: 2; } .bar { stroke: none; }
.one { stroke: var(--one); } .two { stroke: var(--two); } .three { stroke: var(--three); } .fault { stroke: var(--fault); stroke-dasharray: 4 3; }
svg .dot { stroke-width: 2; } .dot.one { fill: var(--one); } .dot.two { fill: var(--two); } .dot.three { fill: var(--three); } svg .dot.hollow { fill: var(--back); }
.bar.one { fill: var(--one); } .bar.two { fill: var(--two); } .faults { fill: var(--fault); opacity: .12; }
svg text.key { fill: var(--text); } .bad { color: var(--fault); font-weight: 600; } p.note { color: var(--dim); }
";

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut out = String::new();
    let config = &report.config;
    let title = format!(
        "{} records/s of {} B, {} groups, {} nodes",
        count(report.throughput_records_per_s),
        config.record_sizes,
        config.groups,
        config.nodes
    );
    head(&mut out, &title);
    verdict(&mut out, report);
    facts(&mut out, report);
    section(
        &mut out,
        "Latency by percentile",
        "both axes logarithmic; from when a record was sent, or due in the open loop",
        &percentiles(report),
    );
    if !report.slices.is_empty() {
        let rate = |slice: &Slice| Some(slice.records_per_s);
        let reads = |slice: &Slice| Some(slice.reads_per_s);
        let delivered = |slice: &Slice| Some(slice.delivered_per_s);
        let mut curves: Vec<Curve<'_>> = vec![("appended", "one", &rate)];
        if report.mix.reads.is_some() {
            curves.push(("read", "two", &reads));
        }
        if report.mix.tails.is_some() {
            curves.push(("delivered", "three", &delivered));
        }
        let over_time = over_time(report, false, &curves);
        section(
            &mut out,
            "Throughput over time",
            "records/s; the warm-up is before 0 s; faults are marked",
            &over_time,
        );
        let us = |value: u64| (value > 0).then_some(value as f64);
        let (p50, p99, max) = (
            |slice: &Slice| us(slice.p50_us),
            |slice: &Slice| us(slice.p99_us),
            |slice: &Slice| us(slice.max_us),
        );
        let curves: [Curve<'_>; 3] = [("p50", "one", &p50), ("p99", "two", &p99), ("max", "three", &max)];
        section(&mut out, "Latency over time", "of each second; logarithmic", &over_time_of(report, &curves));
    }
    let threads: Vec<(String, f64)> =
        report.core_us_by_thread.iter().map(|(name, us)| (name.clone(), *us)).collect();
    let client = report.client_core_us_per_record.map(|us| ("client".to_owned(), us));
    let threads: Vec<(String, f64)> =
        threads.into_iter().chain(client).filter(|(_, us)| *us >= 0.005).collect();
    section(
        &mut out,
        "CPU time of a record",
        "microseconds of a core, by thread, over all nodes",
        &bars(&threads, |us| format!("{us:.2} us"), "one"),
    );
    let rings: Vec<(String, f64)> =
        report.rings.iter().map(|(name, ring)| (name.clone(), ring.p99_us)).collect();
    section(
        &mut out,
        "Waits between threads",
        "99th percentile of the time in each ring",
        &bars(&rings, plot::duration, "two"),
    );
    out.push_str("</body>\n</html>\n");
    out
}

/// A page with latency over throughput.
pub(crate) fn sweep_page(sweep: &Sweep) -> String {
    let mut out = String::new();
    let title = "Latency over throughput";
    head(&mut out, title);
    let Some(first) = sweep.points.first() else {
        return out + "<p>Nothing was measured.</p></body>\n</html>\n";
    };
    let config = &first.report.config;
    let note = format!(
        "{} B records, {} groups, {} nodes with {} shards; open loop, latency from when records were due; p99 and p99.9 logarithmic",
        config.record_sizes, config.groups, config.nodes, config.shards
    );
    section(&mut out, title, &note, &sweep_picture(sweep));
    out.push_str("<table>\n<tr><td>records/s</td><td>p50</td><td>p99</td><td>p99.9</td><td>max</td><td>core-us a record</td><td></td></tr>\n");
    for point in &sweep.points {
        let latency = &point.report.latency_us;
        let time = |us: u64| plot::duration(us as f64);
        _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td class=\"bad\">{}</td></tr>",
            count(point.rate_per_s.into()),
            time(latency.p50),
            time(latency.p99),
            time(latency.p99_9),
            time(latency.max),
            point.report.core_us_per_record,
            if point.is_schedule_kept { "" } else { "schedule not kept" }
        );
    }
    out.push_str("</table>\n</body>\n</html>\n");
    out
}

fn sweep_picture(sweep: &Sweep) -> String {
    type Of = fn(&Report) -> u64;
    let curves: [(&str, &str, Of); 3] = [
        ("p50", "one", |report| report.latency_us.p50),
        ("p99", "two", |report| report.latency_us.p99),
        ("p99.9", "three", |report| report.latency_us.p99_9),
    ];
    let axis = Axis::log(
        sweep.points.iter().flat_map(|point| curves.iter().map(|(.., of)| of(&point.report) as f64)),
    );
    let across = Axis::linear(sweep.points.iter().map(|point| f64::from(point.rate_per_s)));
    let ticks: Vec<(f64, String)> =
        across.ticks().into_iter().map(|tick| (across.part(tick), count(tick))).collect();
    let mut svg = String::new();
    frame(&mut svg, &axis, plot::duration, &ticks, "records/s");
    for (at, (name, class, of)) in curves.iter().enumerate() {
        let point = |point: &Point| {
            (x_of(across.part(f64::from(point.rate_per_s))), y_of(&axis, of(&point.report) as f64))
        };
        let points: Vec<(f64, f64)> = sweep.points.iter().map(point).collect();
        curve(&mut svg, class, &points);
        for ((x, y), of) in points.iter().zip(&sweep.points) {
            // Hollow: these latencies are of another load.
            let fill = if of.is_schedule_kept { "" } else { " hollow" };
            _ = write!(svg, "<circle class=\"dot {class}{fill}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
        }
        key(&mut svg, at, name, class);
    }
    svg + "</svg>"
}

/// The key of a curve, each beside the one before.
fn key(svg: &mut String, at: usize, name: &str, class: &str) {
    let x = LEFT + 12.0 + 90.0 * at as f64;
    _ = write!(
        svg,
        "<line class=\"curve {class}\" x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\"/>",
        TOP + 8.0,
        x + 20.0
    );
    _ = write!(svg, "<text class=\"key\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>", x + 26.0, TOP + 12.0);
}

fn head(out: &mut String, title: &str) {
    _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>loadgen: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
}

fn verdict(out: &mut String, report: &Report) {
    let mut bad = Vec::new();
    if !report.is_clean() {
        bad.push("Not all that was acknowledged was found as it should be: see below.".to_owned());
    }
    if report.open_loop.is_some_and(|open| !open.is_schedule_kept) {
        bad.push(
            "The schedule was not kept: these latencies are of another load than was asked for.".to_owned(),
        );
    }
    if report.machine.is_tmpfs {
        bad.push("The data was in memory: an fsync meant nothing.".to_owned());
    }
    for line in bad {
        _ = writeln!(out, "<p class=\"bad\">{}</p>", escape(&line));
    }
}

/// The table for the terminal, as a table.
fn facts(out: &mut String, report: &Report) {
    out.push_str("<table>\n");
    for (name, value) in report.rows() {
        _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name.trim()), escape(&value));
    }
    let machine = &report.machine;
    let text = format!(
        "{}, {} cores, {} GiB, Linux {}",
        machine.cpu,
        machine.cores,
        machine.memory_bytes >> 30,
        machine.kernel
    );
    _ = writeln!(out, "<tr><td>machine</td><td>{}</td></tr>", escape(&text));
    let versions: Vec<String> =
        report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    _ = writeln!(out, "<tr><td>versions</td><td>{}</td></tr>\n</table>", escape(&versions.join(", ")));
}

fn section(out: &mut String, title: &str, note: &str, picture: &str) {
    _ = write!(out, "<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n{picture}\n");
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A curve: its name, its class, its values.
type Curve<'a> = (&'static str, &'static str, &'a dyn Fn(&Slice) -> Option<f64>);

/// Where values lie on an axis.
pub(crate) struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Axis {
    /// From 0 to a round number above the values.
    pub(crate) fn linear(values: impl Iterator<Item = f64>) -> Axis {
        let most = values.fold(0.0, f64::max).max(1.0);
        let step = 10_f64.powf(most.log10().floor());
        Axis { low: 0.0, high: (most / step).ceil() * step, is_log: false }
    }

    /// Whole powers of ten around the values.
    pub(crate) fn log(values: impl Iterator<Item = f64>) -> Axis {
        let (least, most) =
            values.fold((f64::MAX, 1.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        let low = 10_f64.powf(least.min(most).max(1.0).log10().floor());
        let high = 10_f64.powf(most.log10().ceil()).max(low * 10.0);
        Axis { low, high, is_log: true }
    }

    /// 0 to 1.
    pub(crate) fn part(&self, value: f64) -> f64 {
        let part = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        part.clamp(0.0, 1.0)
    }

    pub(crate) fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let powers = (self.high / self.low).log10().round() as i32;
            (0..=powers).map(|power| self.low * 10_f64.powi(power)).collect()
        } else {
            (0..=4).map(|at| self.low + (self.high - self.low) * f64::from(at) / 4.0).collect()
        }
    }
}

fn y_of(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.part(value) * (HEIGHT - BOTTOM - TOP)
}

fn x_of(part: f64) -> f64 {
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

/// The frame of a picture: lines across, numbers at them, the names of both axes.
fn frame(
    svg: &mut String,
    axis: &Axis,
    show: impl Fn(f64) -> String,
    x_ticks: &[(f64, String)],
    x_name: &str,
) {
    _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for tick in axis.ticks() {
        let y = y_of(axis, tick);
        _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        );
        _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            show(tick)
        );
    }
    for (part, label) in x_ticks {
        let (x, y) = (x_of(*part), HEIGHT - BOTTOM);
        _ = write!(svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>");
        _ = write!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", y + 16.0);
    }
    _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_name}</text>",
        x_of(0.5),
        HEIGHT - 6.0
    );
}

fn curve(svg: &mut String, class: &str, points: &[(f64, f64)]) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    _ = write!(svg, "<polyline class=\"curve {class}\" points=\"{}\"/>", points.join(" "));
}

/// A curve over percentiles: its name, its class, quantiles and microseconds.
type Percentiles<'a> = (&'static str, &'static str, &'a [(f64, u64)]);

fn percentiles(report: &Report) -> String {
    let mut curves: Vec<Percentiles<'_>> = vec![("appended", "one", &report.percentiles_us)];
    if let Some(reads) = &report.mix.reads {
        curves.push(("read", "two", &reads.percentiles_us));
    }
    if let Some(tails) = &report.mix.tails {
        curves.push(("delivered", "three", &tails.percentiles_us));
    }
    let points = || curves.iter().flat_map(|(.., points)| points.iter());
    let Some(last) = points().map(|(quantile, _)| *quantile).reduce(f64::max) else {
        return "<p>No record was acknowledged.</p>".to_owned();
    };
    let axis = Axis::log(points().map(|(_, us)| *us as f64));
    // How many nines the last point has.
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-9).log10();
    let most = nines(last).max(2.0);
    let ticks: Vec<(f64, String)> = (0..=most.floor() as usize)
        .map(|nine| {
            let label = match nine {
                0 => "0 %".to_owned(),
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                more => format!("99.{} %", "9".repeat(more - 2)),
            };
            (nine as f64 / most, label)
        })
        .collect();
    let mut svg = String::new();
    frame(&mut svg, &axis, plot::duration, &ticks, "of the records took at most so long");
    for (at, (name, class, points)) in curves.iter().enumerate() {
        let place = |(quantile, us): &(f64, u64)| (x_of(nines(*quantile) / most), y_of(&axis, *us as f64));
        let points: Vec<(f64, f64)> = points.iter().map(place).collect();
        curve(&mut svg, class, &points);
        if curves.len() > 1 {
            key(&mut svg, at, name, class);
        }
    }
    svg + "</svg>"
}

fn over_time_of(report: &Report, curves: &[Curve<'_>]) -> String {
    over_time(report, true, curves)
}

/// Curves over the time of the run; faults are marked.
fn over_time(report: &Report, is_log: bool, curves: &[Curve<'_>]) -> String {
    let values = || report.slices.iter().flat_map(|slice| curves.iter().filter_map(|(.., of)| of(slice)));
    let axis = if is_log { Axis::log(values()) } else { Axis::linear(values()) };
    let warmup = report.config.warmup_s;
    let end = report.slices.last().map_or(1.0, |slice| slice.until_s).max(0.001);
    let part = |at: f64| (at / end).clamp(0.0, 1.0);
    let ticks: Vec<(f64, String)> =
        (0..=6).map(|at| f64::from(at) / 6.0).map(|at| (at, format!("{:.1} s", at * end - warmup))).collect();
    let show = |value: f64| if is_log { plot::duration(value) } else { count(value) };
    let mut svg = String::new();
    frame(&mut svg, &axis, show, &ticks, "time from the start of the measurement");
    for FaultSeen { fault, .. } in &report.faults {
        let (from, to) = (x_of(part(fault.at_s + warmup)), x_of(part(fault.at_s + fault.lasting_s + warmup)));
        let (height, middle) = (HEIGHT - BOTTOM - TOP, (from + to) / 2.0);
        _ = write!(
            svg,
            "<rect class=\"faults\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
            (to - from).max(1.0)
        );
        _ = write!(
            svg,
            "<line class=\"fault\" x1=\"{from:.1}\" y1=\"{TOP}\" x2=\"{from:.1}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
        let what = escape(&format!("{:?} {:?}", fault.kind, fault.nodes));
        _ = write!(
            svg,
            "<text class=\"key\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{what}</text>",
            // Below the names of the curves.
            TOP + 28.0
        );
    }
    for (at, (name, class, of)) in curves.iter().enumerate() {
        // A second without a value is a hole.
        let mut points = Vec::new();
        for slice in &report.slices {
            match of(slice) {
                Some(value) => points.push((x_of(part(slice.until_s)), y_of(&axis, value))),
                None => curve(&mut svg, class, &std::mem::take(&mut points)),
            }
        }
        curve(&mut svg, class, &points);
        key(&mut svg, at, name, class);
    }
    svg + "</svg>"
}

/// One bar below the other, each with its name and its value.
fn bars(values: &[(String, f64)], show: impl Fn(f64) -> String, class: &str) -> String {
    if values.is_empty() {
        return "<p>Nothing was counted.</p>".to_owned();
    }
    const ROW: f64 = 24.0;
    const NAME: f64 = 150.0;
    const VALUE: f64 = 90.0;
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9);
    let height = ROW * values.len() as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (at, (name, value)) in values.iter().enumerate() {
        let y = ROW * at as f64;
        let width = (value / most * (WIDTH - NAME - VALUE)).max(1.0);
        _ = write!(
            svg,
            "<text class=\"key\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAME - 8.0,
            y + 16.0,
            escape(name)
        );
        _ = write!(
            svg,
            "<rect class=\"bar {class}\" x=\"{NAME}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
            y + 4.0,
            ROW - 8.0
        );
        _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAME + width + 8.0,
            y + 16.0,
            show(*value)
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_page_has_its_pictures_and_needs_nothing_from_elsewhere() {
        let mut report = report();
        report.percentiles_us = vec![(0.0, 100), (0.5, 800), (0.99, 5_000), (0.9999, 90_000)];
        report.slices = (1..=5)
            .map(|second| Slice {
                until_s: f64::from(second),
                is_measured: true,
                records_per_s: 1000.0 * f64::from(second),
                p50_us: 500,
                p99_us: if second == 3 { 0 } else { 4_000 },
                max_us: 9_000,
                ..Slice::default()
            })
            .collect();
        let page = page(&report);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.matches("<svg").count() >= 5, "{page}");
        assert!(page.contains("99.9 %") && page.contains("prefers-color-scheme: dark"));
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"), "{page}");
        // A second without an answer parts the curve.
        assert_eq!(page.matches("class=\"curve two\" points").count(), 2);
    }

    #[test]
    fn a_sweep_says_which_points_are_of_another_load() {
        let point = |rate_per_s, is_schedule_kept| Point { rate_per_s, is_schedule_kept, report: report() };
        let sweep =
            Sweep { closed_loop_per_s: Some(1e5), points: vec![point(10_000, true), point(90_000, false)] };
        let page = sweep_page(&sweep);
        assert_eq!((page.matches("<circle").count(), page.matches(" hollow\"").count()), (6, 3));
        assert!(page.contains("schedule not kept") && !page.contains("NaN"));
        assert!(
            sweep_page(&Sweep { closed_loop_per_s: None, points: vec![] }).contains("Nothing was measured")
        );
    }

    #[test]
    fn axes_hold_their_values() {
        let axis = Axis::log([30.0, 7_000.0].into_iter());
        assert_eq!((axis.low, axis.high, axis.ticks().len()), (10.0, 10_000.0, 4));
        assert!(axis.part(30.0) > 0.0 && axis.part(7_000.0) < 1.0 && axis.part(1.0) == 0.0);
        let axis = Axis::linear([1_234.0].into_iter());
        assert_eq!((axis.low, axis.high), (0.0, 2_000.0));
        assert!(Axis::log(std::iter::empty()).high.is_finite());
    }
}
