//! Throughput against latency as one SVG: a function of the points, and of nothing else.
//!
//! It brings its own colours for light and dark paper, and asks for no font or file. Each series has a shape as well as
//! a colour.

use std::fmt::Write;

use crate::scale::LogScale;

const WIDTH: f64 = 1000.0;
/// Where the axes are.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 976.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 560.0;
/// The first line of the legend, below the axis and its name; and what a line of it takes.
const LEGEND_TOP: f64 = 634.0;
const LEGEND_LINE: f64 = 24.0;
/// Where the legend has what a series promises.
const PROMISE_LEFT: f64 = 390.0;
/// From the centre of a mark to its edge.
const MARK: f64 = 4.5;

/// A colour on light paper, and one on dark paper: told apart by colour-blind readers too (Okabe and Ito).
const COLOURS: [(&str, &str); 5] = [
    ("#0b62c4", "#58a6ff"),
    ("#b8480a", "#ff9d5c"),
    ("#00785a", "#3ddc97"),
    ("#8a3d8f", "#e39be8"),
    ("#6b6f00", "#d6d94a"),
];

/// What was measured at one number of records in flight.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Point {
    /// Of all clients.
    pub(crate) in_flight: u64,
    pub(crate) records_per_s: f64,
    /// The median; the mean where the series says so.
    pub(crate) p50_us: f64,
    /// `None` where it is not known.
    pub(crate) p99_us: Option<f64>,
}

/// Points of one system, in order of what is in flight.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// What an answer means there, and what its points leave out.
    pub(crate) promise: String,
    pub(crate) points: Vec<Point>,
    /// Whether its points have their numbers in flight beside them.
    pub(crate) is_labelled: bool,
}

/// What is drawn.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Picture {
    pub(crate) title: String,
    /// Lines below the title: the load, the machine.
    pub(crate) about: Vec<String>,
    /// As many as there are colours at most.
    pub(crate) series: Vec<Series>,
    /// Lines below the legend.
    pub(crate) notes: Vec<String>,
}

/// The picture as an SVG document.
pub(crate) fn draw(picture: &Picture) -> String {
    let points = || picture.series.iter().flat_map(|series| &series.points);
    let x = LogScale::over(points().map(|point| point.records_per_s), LEFT, RIGHT);
    let latencies = points().flat_map(|point| [Some(point.p50_us), point.p99_us]).flatten();
    let y = LogScale::over(latencies, BOTTOM, TOP);
    let lines = picture.series.len() + 1 + picture.notes.len();
    let height = LEGEND_TOP + LEGEND_LINE * lines as f64;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" font-size=\"14\">"
    );
    let _ = writeln!(svg, "<title>{}</title>", escape(&picture.title));
    style(&mut svg);
    let _ = writeln!(svg, "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>");
    text(&mut svg, (LEFT, 30.0), "title", &picture.title);
    for (at, line) in picture.about.iter().enumerate() {
        text(&mut svg, (LEFT, 50.0 + 18.0 * at as f64), "soft", line);
    }
    axes(&mut svg, &x, &y);
    for (at, series) in picture.series.iter().enumerate().rev() {
        // The first one last, so that it lies on top.
        curves(&mut svg, at, series, &x, &y);
    }
    for (at, series) in picture.series.iter().enumerate().filter(|(_, series)| series.is_labelled) {
        labels(&mut svg, at, series, &x, &y);
    }
    legend(&mut svg, picture);
    svg.push_str("</svg>\n");
    svg
}

/// Text as it may stand in an element or in an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write any other control character.
            '\t' | '\n' | '\r' => escaped.push(' '),
            letter if letter.is_control() => {}
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(words));
}

fn style(svg: &mut String) {
    let rules =
        |svg: &mut String, ink: [&str; 4], colours: fn(&(&'static str, &'static str)) -> &'static str| {
            let [paper, ink, soft, grid] = ink;
            let _ = writeln!(svg, ".paper{{fill:{paper}}} text{{fill:{ink}}} .soft{{fill:{soft}}}");
            let _ = writeln!(svg, ".grid{{stroke:{grid}}} .axis{{stroke:{soft}}}");
            let _ = writeln!(svg, ".hollow{{fill:{paper}}} .halo{{fill:{paper};stroke:{paper}}}");
            for (at, colour) in COLOURS.iter().map(colours).enumerate() {
                let _ = writeln!(svg, ".s{at}{{stroke:{colour}}} .f{at}{{fill:{colour}}} ");
            }
        };
    svg.push_str("<style>\n");
    rules(svg, ["#ffffff", "#1b1f24", "#59636e", "#dde2e8"], |(light, _)| light);
    svg.push_str("@media (prefers-color-scheme: dark) {\n");
    rules(svg, ["#0d1117", "#e6edf3", "#9aa4af", "#2a313a"], |(_, dark)| dark);
    svg.push_str("}\n");
    svg.push_str(
        ".title{font-size:20px;font-weight:600} .small{font-size:11px} .name{font-weight:600}\n\
         .middle{text-anchor:middle} .end{text-anchor:end} .grid,.axis{stroke-width:1}\n\
         .halo{stroke-width:4;stroke-linejoin:round} .line{fill:none;stroke-width:2} .dashed{stroke-dasharray:6 4} .mark{stroke-width:1.8}\n</style>\n",
    );
}

fn axes(svg: &mut String, x: &LogScale, y: &LogScale) {
    let line = |svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)| {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    };
    for tick in x.ticks() {
        let at = x.at(tick.value);
        line(svg, "grid", (at, TOP), (at, BOTTOM));
        let class = if tick.is_decade { "middle" } else { "middle soft small" };
        text(svg, (at, BOTTOM + 20.0), class, &count(tick.value));
    }
    for tick in y.ticks() {
        let at = y.at(tick.value);
        line(svg, "grid", (LEFT, at), (RIGHT, at));
        let class = if tick.is_decade { "end" } else { "end soft small" };
        text(svg, (LEFT - 8.0, at + 4.5), class, &time(tick.value));
    }
    line(svg, "axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    line(svg, "axis", (LEFT, TOP), (LEFT, BOTTOM));
    text(svg, (f64::midpoint(LEFT, RIGHT), BOTTOM + 44.0), "middle", "records acknowledged a second");
    let middle = f64::midpoint(TOP, BOTTOM);
    let _ = writeln!(
        svg,
        "<text class=\"middle\" transform=\"translate(20 {middle:.1}) rotate(-90)\">latency of a record</text>"
    );
}

/// Two curves of a series: the median, whole and filled, and the 99th percentile, dashed and hollow.
fn curves(svg: &mut String, at: usize, series: &Series, x: &LogScale, y: &LogScale) {
    let median = series.points.iter().map(|point| (point, Some(point.p50_us)));
    let tail = series.points.iter().map(|point| (point, point.p99_us));
    curve(svg, at, tail, (x, y), false);
    curve(svg, at, median, (x, y), true);
}

/// What is in flight at each point, beside it: under a paper-coloured edge, so that lines may cross it.
fn labels(svg: &mut String, at: usize, series: &Series, x: &LogScale, y: &LogScale) {
    for point in &series.points {
        let place = (x.at(point.records_per_s) + 6.0, y.at(point.p50_us) + 15.0);
        text(svg, place, "small halo", &grouped(point.in_flight));
        text(svg, place, &format!("small f{at}"), &grouped(point.in_flight));
    }
}

fn curve<'a>(
    svg: &mut String,
    at: usize,
    points: impl Iterator<Item = (&'a Point, Option<f64>)>,
    (x, y): (&LogScale, &LogScale),
    is_median: bool,
) {
    let place = |(point, us): (&Point, Option<f64>)| Some((x.at(point.records_per_s), y.at(us?)));
    let places: Vec<(f64, f64)> = points.filter_map(place).collect();
    if places.is_empty() {
        return;
    }
    let joined: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashed = if is_median { "" } else { " dashed" };
    let _ = writeln!(svg, "<polyline class=\"line s{at}{dashed}\" points=\"{}\"/>", joined.join(" "));
    for place in places {
        mark(svg, at, place, is_median);
    }
}

/// A mark in the shape of its series.
fn mark(svg: &mut String, at: usize, (x, y): (f64, f64), is_filled: bool) {
    let fill = if is_filled { format!("f{at}") } else { "hollow".to_owned() };
    let corners: &[(f64, f64)] = match at % 5 {
        0 => {
            let _ = writeln!(
                svg,
                "<circle class=\"mark s{at} {fill}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{MARK}\"/>"
            );
            return;
        }
        1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        _ => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    };
    let corner = |(dx, dy): &(f64, f64)| format!("{:.1},{:.1}", x + dx * MARK, y + dy * MARK);
    let corners: Vec<String> = corners.iter().map(corner).collect();
    let _ = writeln!(svg, "<polygon class=\"mark s{at} {fill}\" points=\"{}\"/>", corners.join(" "));
}

fn legend(svg: &mut String, picture: &Picture) {
    let mut y = LEGEND_TOP;
    for (at, series) in picture.series.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<polyline class=\"line s{at}\" points=\"{LEFT:.1},{0:.1} {1:.1},{0:.1}\"/>",
            y - 5.0,
            LEFT + 32.0
        );
        mark(svg, at, (LEFT + 16.0, y - 5.0), true);
        text(svg, (LEFT + 42.0, y), "name", &series.name);
        text(svg, (PROMISE_LEFT, y), "soft", &series.promise);
        y += LEGEND_LINE;
    }
    let key = "whole and filled: median; dashed and hollow: 99th percentile; numbers: records in flight";
    for line in std::iter::once(key).chain(picture.notes.iter().map(String::as_str)) {
        text(svg, (LEFT, y), "soft", line);
        y += LEGEND_LINE;
    }
}

/// A number of records, short: `20`, `5 k`, `1 M`.
fn count(value: f64) -> String {
    let (value, unit) = match value {
        value if value < 1e3 => (value, ""),
        value if value < 1e6 => (value / 1e3, " k"),
        value => (value / 1e6, " M"),
    };
    format!("{}{unit}", rounded(value))
}

/// A time in microseconds, short and with its unit.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{} {unit}", rounded(value))
}

/// Without digits that say nothing.
fn rounded(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let point =
            |in_flight, records_per_s, p50_us, p99_us| Point { in_flight, records_per_s, p50_us, p99_us };
        let series = |name: &str, points| Series {
            name: name.to_owned(),
            promise: "fsync <quorum> & \"network\"".to_owned(),
            points,
            is_labelled: name == "ours",
        };
        Picture {
            title: "a < b".to_owned(),
            about: vec!["R&D's machine".to_owned()],
            series: vec![
                series("ours", vec![point(8, 5e3, 1.4e3, Some(3e3)), point(32_768, 1.2e6, 2.2e4, Some(5e4))]),
                series("mean", vec![point(1, 2.2e4, 45.0, None)]),
            ],
            notes: vec!["of old".to_owned()],
        }
    }

    /// A reader of as much XML as is drawn: every element ends, in order, and text holds no loose `&` or `<`.
    fn check_xml(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(begin) = rest.find('<') {
            let (before, tag) = rest.split_at(begin);
            for part in before.split('&').skip(1) {
                let name = part.split(';').next().unwrap();
                assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "{before}");
            }
            let end = tag.find('>').expect("a tag ends");
            let (inner, after) = (&tag[1..end], &tag[end + 1..]);
            assert!(!inner.contains('<'), "{inner}");
            assert_eq!(inner.matches('"').count() % 2, 0, "{inner}");
            if let Some(name) = inner.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !inner.ends_with('/') {
                open.push(inner.split(' ').next().unwrap());
            }
            rest = after;
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn everything_is_escaped_and_every_element_ends() {
        assert_eq!(escape("<a & 'b' \"c\">\u{7}\n"), "&lt;a &amp; &#39;b&#39; &quot;c&quot;&gt; ");
        let svg = draw(&picture());
        check_xml(&svg);
        assert!(svg.contains("a &lt; b</text>") && svg.contains("R&amp;D&#39;s machine"), "{svg}");
        assert!(!svg.contains("<quorum>"));
    }

    #[test]
    fn each_point_is_marked_where_its_scale_puts_it() {
        let picture = picture();
        let svg = draw(&picture);
        // Two points with both percentiles, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 5);
        // One mean, and one in the legend: what is not known is not drawn.
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert_eq!(svg.matches(" dashed\"").count(), 1, "no curve without points");
        let x = LogScale::over([5e3, 1.2e6, 2.2e4].into_iter(), LEFT, RIGHT);
        let y = LogScale::over([45.0, 5e4].into_iter(), BOTTOM, TOP);
        let place = format!("cx=\"{:.1}\" cy=\"{:.1}\"", x.at(5e3), y.at(3e3));
        assert!(svg.contains(&place), "{place}");
        assert!(y.at(3e3) > TOP && y.at(3e3) < y.at(1.4e3), "later is higher");
        assert!(svg.contains(">32,768</text>"));
    }

    #[test]
    fn it_is_readable_on_light_and_dark_paper_and_needs_nothing_else() {
        let svg = draw(&picture());
        let (light, dark) = svg.split_once("prefers-color-scheme: dark").unwrap();
        for (at, (on_light, on_dark)) in COLOURS.iter().enumerate() {
            assert!(light.contains(&format!(".s{at}{{stroke:{on_light}}}")));
            assert!(dark.contains(&format!(".s{at}{{stroke:{on_dark}}}")));
        }
        assert_eq!(svg.matches("http").count(), 1, "the name space and no other address");
        assert!(!svg.contains("<script") && !svg.contains("<image") && !svg.contains("url("));
    }

    #[test]
    fn the_same_points_give_the_same_picture_and_none_give_one_too() {
        assert_eq!(draw(&picture()), draw(&picture()));
        let empty = Picture { series: Vec::new(), ..picture() };
        check_xml(&draw(&empty));
    }

    #[test]
    fn numbers_are_short_and_have_their_units() {
        assert_eq!(
            (count(500.0), count(1e3), count(2e4), count(5e6)),
            ("500".into(), "1 k".into(), "20 k".into(), "5 M".into())
        );
        assert_eq!(
            (time(50.0), time(1e3), time(2e5), time(1e6)),
            ("50 µs".into(), "1 ms".into(), "200 ms".into(), "1 s".into())
        );
        assert_eq!((grouped(8), grouped(512), grouped(32_768)), ("8".into(), "512".into(), "32,768".into()));
    }
}
