//! Systems beside each other as one SVG: a function of the figures, and of nothing else.
//!
//! It brings its own colours for light and dark paper, and asks for no font or file. Each bar has its system's name and
//! its value beside it, so that nothing is said by colour alone.

use std::fmt::Write;

use super::outcome::{Load, Outcome, Row};
use crate::html::{Axis, escape};
use crate::plot;
use crate::report::{Latency, count};

const WIDTH: f64 = 1000.0;
/// Where the two axes are: throughput on the left, latency on the right, with room for values behind their bars.
const RATE: (f64, f64) = (150.0, 430.0);
const TIME: (f64, f64) = (600.0, 900.0);
/// The left edge of all text.
const LEFT: f64 = 24.0;
/// A line of text below the title, and one of the legend.
const LINE: f64 = 20.0;
/// A bar of latency, one for each of [`PERCENTILES`], and what parts two systems.
const BAR: f64 = 15.0;
const GAP: f64 = 12.0;
/// A panel's head, and its axis with name.
const PANEL_HEAD: f64 = 40.0;
const PANEL_FOOT: f64 = 56.0;

type Percentile = (&'static str, fn(&Latency) -> u64);
const PERCENTILES: [Percentile; 3] =
    [("p50", |latency| latency.p50), ("p99", |latency| latency.p99), ("p99.9", |latency| latency.p99_9)];

/// A colour on light paper, and one on dark paper: told apart by colour-blind readers too (Okabe and Ito).
const COLOURS: [(&str, &str); 3] = [("#0b62c4", "#58a6ff"), ("#b8480a", "#ff9d5c"), ("#00785a", "#3ddc97")];

/// The picture as an SVG document.
pub(super) fn draw(outcome: &Outcome) -> String {
    let mut body = String::new();
    text(
        &mut body,
        (LEFT, 36.0),
        "title",
        "iroh-raft beside its rivals: same generator, same clock, same disk",
    );
    let mut y = 62.0;
    let left_out = outcome.left_out.iter().map(|left| format!("left out: {}", left.name));
    for line in outcome.notes().into_iter().chain(left_out) {
        for line in wrap(&line, 140) {
            text(&mut body, (LEFT, y), "soft", &line);
            y += LINE;
        }
    }
    y += 8.0;
    // A system is known by its name: what it promises may differ from load to load only when servers do.
    let names = names(outcome);
    for (at, name) in names.iter().enumerate() {
        let Some(row) = outcome.rows.iter().find(|row| row.system.name == *name) else { continue };
        bar(&mut body, at, (LEFT, y - 11.0), 14.0, 13.0, 1.0);
        let line = format!("{} {}", row.system.name, row.system.version);
        text(&mut body, (LEFT + 24.0, y), "name", &line);
        text(&mut body, (LEFT + 226.0, y), "soft", &format!("acknowledged: {}", row.system.promise));
        y += LINE;
    }
    for load in outcome.loads() {
        let rows: Vec<&Row> = outcome.rows.iter().filter(|row| row.load == load).collect();
        y = panel(&mut body, y + 16.0, &load, &rows, &names);
    }
    let mut svg = String::new();
    _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" role=\"img\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" font-size=\"13\">\n\
         <title>Throughput and latency of {}</title>",
        escape(&names.join(", "))
    );
    style(&mut svg);
    _ = writeln!(svg, "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{y:.0}\"/>");
    svg + &body + "</svg>\n"
}

/// The systems, in order.
fn names(outcome: &Outcome) -> Vec<&str> {
    let mut names = Vec::new();
    for row in &outcome.rows {
        if !names.contains(&row.system.name.as_str()) {
            names.push(row.system.name.as_str());
        }
    }
    names
}

/// One load from `top` on; returns where it ends.
fn panel(svg: &mut String, top: f64, load: &Load, rows: &[&Row], names: &[&str]) -> f64 {
    let height = BAR * PERCENTILES.len() as f64 + GAP;
    let (begin, end) = (top + PANEL_HEAD, top + PANEL_HEAD + height * rows.len() as f64);
    let head = format!(
        "{} B records, {} x {} in flight",
        load.record_bytes,
        match load.clients {
            1 => "1 client".to_owned(),
            clients => format!("{clients} clients"),
        },
        load.in_flight
    );
    text(svg, (LEFT, top + 20.0), "name", &head);
    let median = |row: &Row, of: fn(&Latency) -> u64| row.spread(|run| of(&run.latency_us) as f64).median;
    let rates = Axis::linear(rows.iter().map(|row| row.spread(|run| run.records_per_s).max));
    let times = Axis::log(rows.iter().flat_map(|row| PERCENTILES.map(|(_, of)| median(row, of))));
    scale(svg, (begin, end), RATE, &rates, count, "records acknowledged a second");
    scale(svg, (begin, end), TIME, &times, plot::duration, "latency of a record, logarithmic");
    for (at, row) in rows.iter().enumerate() {
        let colour = names.iter().position(|name| *name == row.system.name).unwrap_or(0);
        let y = begin + GAP / 2.0 + height * at as f64;
        let middle = y + (height - GAP) / 2.0;
        text(svg, (RATE.0 - 10.0, middle + 4.5), "end", &row.system.name);
        let rate = row.spread(|run| run.records_per_s);
        let place = |value: f64| RATE.0 + rates.part(value) * (RATE.1 - RATE.0);
        bar(svg, colour, (RATE.0, y + 6.0), place(rate.median) - RATE.0, height - GAP - 12.0, 1.0);
        if row.runs.len() > 1 {
            let (least, most) = (place(rate.min), place(rate.max));
            _ = writeln!(
                svg,
                "<path class=\"range\" d=\"M{least:.1} {middle:.1}H{most:.1}M{least:.1} {0:.1}V{1:.1}M{most:.1} {0:.1}V{1:.1}\"/>",
                middle - 4.0,
                middle + 4.0
            );
        }
        let after = place(rate.median).max(if row.runs.len() > 1 { place(rate.max) } else { 0.0 });
        text(svg, (after + 7.0, middle + 4.5), "", &count(rate.median));
        for (number, (name, of)) in PERCENTILES.into_iter().enumerate() {
            let y = y + BAR * number as f64;
            let us = median(row, of);
            let length = times.part(us) * (TIME.1 - TIME.0);
            text(svg, (TIME.0 - 8.0, y + BAR - 3.5), "end soft small", name);
            bar(svg, colour, (TIME.0, y + 1.0), length, BAR - 2.0, [1.0, 0.72, 0.48][number]);
            text(svg, (TIME.0 + length + 7.0, y + BAR - 3.5), "small", &plot::duration(us));
        }
    }
    end + PANEL_FOOT
}

/// The lines of an axis, its numbers below, and its name.
fn scale(
    svg: &mut String,
    (top, bottom): (f64, f64),
    (left, right): (f64, f64),
    axis: &Axis,
    show: impl Fn(f64) -> String,
    name: &str,
) {
    for tick in axis.ticks() {
        let x = left + axis.part(tick) * (right - left);
        _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
        );
        text(svg, (x, bottom + 17.0), "middle soft small", &show(tick));
    }
    _ = writeln!(
        svg,
        "<line class=\"axis\" x1=\"{left:.1}\" y1=\"{top:.1}\" x2=\"{left:.1}\" y2=\"{bottom:.1}\"/>"
    );
    text(svg, (f64::midpoint(left, right), bottom + 36.0), "middle soft", name);
}

fn bar(svg: &mut String, colour: usize, (x, y): (f64, f64), width: f64, height: f64, opacity: f64) {
    // A bar that is too short to be seen says that there is none.
    let width = width.max(1.0);
    _ = writeln!(
        svg,
        "<rect class=\"s{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" opacity=\"{opacity}\"/>",
        colour % COLOURS.len()
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, words: &str) {
    _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(words));
}

/// Lines of at most so many letters, cut at spaces.
fn wrap(text: &str, letters_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters_max => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn style(svg: &mut String) {
    let rules = |svg: &mut String, [paper, ink, soft, grid]: [&str; 4], is_dark: bool| {
        _ = writeln!(svg, ".paper{{fill:{paper}}} text{{fill:{ink}}} .soft{{fill:{soft}}}");
        _ = writeln!(svg, ".grid{{stroke:{grid}}} .axis{{stroke:{soft}}} .range{{stroke:{ink};fill:none}}");
        for (at, (light, dark)) in COLOURS.iter().enumerate() {
            _ = writeln!(svg, ".s{at}{{fill:{}}}", if is_dark { dark } else { light });
        }
    };
    svg.push_str("<style>\n");
    rules(svg, ["#ffffff", "#1b1f24", "#59636e", "#dde2e8"], false);
    svg.push_str("@media (prefers-color-scheme: dark) {\n");
    rules(svg, ["#0d1117", "#e6edf3", "#9aa4af", "#2a313a"], true);
    svg.push_str(
        "}\n.title{font-size:19px;font-weight:600} .name{font-weight:600} .small{font-size:11.5px}\n\
         .middle{text-anchor:middle} .end{text-anchor:end} .grid,.axis{stroke-width:1} .range{stroke-width:1.5}\n</style>\n",
    );
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    #[test]
    fn every_system_has_its_bars_in_every_load() {
        let outcome = outcome();
        let svg = draw(&outcome);
        // A key for each of two systems; a rate and three percentiles for each of three rows.
        assert_eq!(svg.matches("<rect class=\"s").count(), 2 + 3 * 4);
        assert_eq!(svg.matches("class=\"range\"").count(), 3, "each was measured twice");
        assert!(svg.contains(">1.12 M</text>") && svg.contains(">250 ms</text>"), "{svg}");
        assert!(svg.contains("8 clients x 256") && svg.contains("1 client x 1"));
        assert!(svg.contains("left out: third"));
    }

    #[test]
    fn a_longer_bar_is_a_larger_figure() {
        let outcome = outcome();
        let svg = draw(&outcome);
        let widths = |class: &str| -> Vec<f64> {
            let rects = svg.split("<rect ").filter(|rect| rect.starts_with(&format!("class=\"{class}\"")));
            let width = |rect: &str| rect.split("width=\"").nth(1)?.split('"').next()?.parse().ok();
            rects.filter_map(width).collect()
        };
        let (ours, theirs) = (widths("s0"), widths("s1"));
        // Key, rate, p50, p99, p99.9 of the first load.
        assert!(ours[1] > 100.0 * theirs[1], "{ours:?} {theirs:?}");
        assert!((2..5).all(|at| ours[at] < theirs[at]), "{ours:?} {theirs:?}");
        assert!(ours[2] < ours[3] && ours[3] < ours[4]);
    }

    #[test]
    fn it_is_whole_and_needs_nothing_from_elsewhere() {
        let svg = draw(&outcome());
        assert!(svg.contains("on &lt;disk&gt; &amp; &quot;fsynced&quot;") && !svg.contains("<disk>"));
        assert!(svg.contains("prefers-color-scheme: dark") && !svg.contains("NaN"));
        let links = svg.matches("http").count();
        assert_eq!(
            (links, svg.matches("xmlns=\"http").count()),
            (1, 1),
            "no link but the name of the format"
        );
        for element in ["svg", "text", "style", "title"] {
            let open =
                svg.matches(&format!("<{element}>")).count() + svg.matches(&format!("<{element} ")).count();
            assert_eq!(open, svg.matches(&format!("</{element}>")).count(), "{element}");
        }
    }

    #[test]
    fn long_lines_are_cut_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("", 7), Vec::<String>::new());
    }
}
