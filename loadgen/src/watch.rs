//! What is shown while a load runs: a view that is drawn anew each second on a terminal, a line for each second elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use crate::cluster::NodeUsage;
use crate::hdr::Stretch;
use crate::plot;
use crate::progress::Progress;
use crate::recorder::Interval;
use crate::report::{Latency, Slice, count, ratio};

/// Seconds in the picture of the rate.
const SECONDS_SHOWN: usize = 40;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How a node stands, as the view shows it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct NodeLook {
    pub(crate) node: u64,
    /// Groups that it leads; `None` while it does not answer.
    pub(crate) leads: Option<usize>,
    /// What it has used so far.
    pub(crate) flushes: u64,
    pub(crate) flush_us_total: u64,
    pub(crate) cpu: Duration,
}

impl NodeLook {
    pub(crate) fn of(node: u64, leads: Option<usize>, used: &NodeUsage) -> NodeLook {
        let NodeUsage { flushes, flush_us_total, cpu, .. } = *used;
        NodeLook { node, leads, flushes, flush_us_total, cpu }
    }
}

/// Merges what the threads hand over, and shows it.
pub(crate) struct Watch {
    threads: usize,
    /// The interval that is gathering, and from how many threads.
    gathering: Interval,
    gathered: usize,
    from: Duration,
    pub(crate) measured: Interval,
    pub(crate) slices: Vec<Slice>,
    pub(crate) stretches: Vec<Stretch>,
    is_logging: bool,
    view: Option<View>,
}

impl Watch {
    /// `title`: what runs, for the view; `end`: when it is over.
    pub(crate) fn new(threads: usize, is_logging: bool, title: String, end: Duration) -> Watch {
        let empty = || Interval::new(true);
        let view = std::io::stderr().is_terminal().then(|| View::new(title, end));
        Watch {
            threads,
            gathering: empty(),
            gathered: 0,
            from: Duration::ZERO,
            measured: empty(),
            slices: Vec::new(),
            stretches: Vec::new(),
            is_logging,
            view,
        }
    }

    /// Says something that is to stay.
    pub(crate) fn say(&mut self, line: &str) {
        match &mut self.view {
            Some(view) => view.say(line),
            None => eprintln!("{line}"),
        }
    }

    /// Whether somebody sees how nodes stand.
    pub(crate) fn is_live(&self) -> bool {
        self.view.is_some()
    }

    /// How the nodes stand now.
    pub(crate) fn look(&mut self, nodes: Vec<NodeLook>) {
        if let Some(view) = &mut self.view {
            view.earlier = std::mem::replace(&mut view.nodes, nodes);
        }
    }

    /// Takes an interval of a thread. Returns whether a second is complete.
    pub(crate) fn handle(&mut self, progress: Progress) -> bool {
        if progress.interval.is_measured {
            self.measured.merge(&progress.interval);
        }
        self.gathering.merge(&progress.interval);
        self.gathered += 1;
        if self.gathered < self.threads {
            return false;
        }
        let length = progress.until.saturating_sub(self.from);
        let latency = Latency::of(&self.gathering.latencies);
        let slice = Slice {
            until_s: progress.until.as_secs_f64(),
            is_measured: progress.interval.is_measured,
            records_per_s: ratio(self.gathering.acked() as f64, length.as_secs_f64()),
            p50_us: latency.p50,
            p99_us: latency.p99,
            max_us: latency.max,
            failed: self.gathering.refused,
            unknown: self.gathering.unknown,
            reads_per_s: ratio(self.gathering.reads.len() as f64, length.as_secs_f64()),
            read_p50_us: self.gathering.reads.value_at_quantile(0.5),
            read_p99_us: self.gathering.reads.value_at_quantile(0.99),
            failed_reads: self.gathering.failed_reads,
            delivered_per_s: ratio(self.gathering.delivered() as f64, length.as_secs_f64()),
            delivery_p50_us: self.gathering.deliveries.value_at_quantile(0.5),
            delivery_p99_us: self.gathering.deliveries.value_at_quantile(0.99),
        };
        match &mut self.view {
            None => eprintln!("{}", line(&slice)),
            Some(view) => view.draw(&slice, &latency, &self.slices, length),
        }
        self.slices.push(slice);
        let from = std::mem::replace(&mut self.from, progress.until);
        self.gathered = 0;
        let gathered = std::mem::replace(&mut self.gathering, Interval::new(true));
        if self.is_logging && progress.interval.is_measured {
            self.stretches.push(Stretch { from, length, latencies: gathered.latencies });
        }
        true
    }
}

fn line(slice: &Slice) -> String {
    let mut line = format!(
        "{:6.1} s {:9} {:>8} records/s  p50 {:>8}  p99 {:>8}  max {:>8}  failed {}  unknown {}",
        slice.until_s,
        if slice.is_measured { "" } else { "(warm-up)" },
        count(slice.records_per_s),
        plot::duration(slice.p50_us as f64),
        plot::duration(slice.p99_us as f64),
        plot::duration(slice.max_us as f64),
        slice.failed,
        slice.unknown,
    );
    for part in mixed(slice) {
        line += "  ";
        line += &part;
    }
    line
}

/// What reads and followers did, where there are any.
fn mixed(slice: &Slice) -> Vec<String> {
    let of = |name: &str, per_s: f64, p50_us: u64, p99_us: u64| {
        let (p50, p99) = (plot::duration(p50_us as f64), plot::duration(p99_us as f64));
        format!("{name} {:>8}/s p50 {p50:>8} p99 {p99:>8}", count(per_s))
    };
    let mut parts = Vec::new();
    if slice.reads_per_s > 0.0 || slice.failed_reads > 0 {
        let failed =
            if slice.failed_reads > 0 { format!(" failed {}", slice.failed_reads) } else { String::new() };
        parts.push(of("reads", slice.reads_per_s, slice.read_p50_us, slice.read_p99_us) + &failed);
    }
    if slice.delivered_per_s > 0.0 {
        parts.push(of("delivered", slice.delivered_per_s, slice.delivery_p50_us, slice.delivery_p99_us));
    }
    parts
}

/// Lines that are drawn over each other.
struct View {
    title: String,
    end: Duration,
    nodes: Vec<NodeLook>,
    /// A look before.
    earlier: Vec<NodeLook>,
    /// Lines that stand there now.
    lines: usize,
    failed: u64,
    unknown: u64,
}

impl View {
    fn new(title: String, end: Duration) -> View {
        View { title, end, nodes: Vec::new(), earlier: Vec::new(), lines: 0, failed: 0, unknown: 0 }
    }

    /// Up to where the view begins, and everything below it gone.
    fn wiped(&mut self) -> String {
        match std::mem::take(&mut self.lines) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    /// What fits into a line of the terminal: more would take another one, which the next view does not know of.
    fn cut(frame: &str) -> String {
        let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col);
        let columns = if columns == 0 { usize::MAX } else { columns.into() };
        frame.lines().map(|line| line.chars().take(columns).chain(['\n']).collect::<String>()).collect()
    }

    fn say(&mut self, line: &str) {
        let text = format!("{}{line}\n", self.wiped());
        show(&text);
    }

    fn draw(&mut self, slice: &Slice, latency: &Latency, before: &[Slice], length: Duration) {
        self.failed += slice.failed;
        self.unknown += slice.unknown;
        let frame = View::cut(&self.frame(slice, latency, before, length));
        let text = format!("{}{frame}", self.wiped());
        self.lines = frame.lines().count();
        show(&text);
    }

    fn frame(&self, slice: &Slice, latency: &Latency, before: &[Slice], length: Duration) -> String {
        let time = |us: u64| plot::duration(us as f64);
        let mut frame = format!(
            "{}   {:.0} s of {:.0} s{}\n",
            self.title,
            slice.until_s,
            self.end.as_secs_f64(),
            if slice.is_measured { "" } else { "   (warm-up)" }
        );
        let rates = before.iter().chain([slice]).map(|slice| slice.records_per_s);
        let rates: Vec<f64> = rates.collect();
        let shown = &rates[rates.len().saturating_sub(SECONDS_SHOWN)..];
        _ = writeln!(frame, "records/s  {:>12}  {}", count(slice.records_per_s), bars(shown));
        _ = writeln!(
            frame,
            "latency    p50 {}   p90 {}   p99 {}   p99.9 {}   max {}",
            time(latency.p50),
            time(latency.p90),
            time(latency.p99),
            time(latency.p99_9),
            time(latency.max)
        );
        _ = writeln!(frame, "records    {} failed, {} unknown so far", self.failed, self.unknown);
        for part in mixed(slice) {
            _ = writeln!(frame, "{part}");
        }
        for node in &self.nodes {
            let Some(leads) = node.leads else {
                _ = writeln!(frame, "node {:<5} does not answer", node.node);
                continue;
            };
            let earlier = self.earlier.iter().find(|earlier| earlier.node == node.node).unwrap_or(node);
            let flushes = node.flushes.saturating_sub(earlier.flushes);
            let flush_us = node.flush_us_total.saturating_sub(earlier.flush_us_total);
            let cpu = node.cpu.saturating_sub(earlier.cpu);
            _ = writeln!(
                frame,
                "node {:<5} leads {leads:>5} groups   {:>7} flushes/s of {:>8}   {:>4.0} % of a core",
                node.node,
                count(ratio(flushes as f64, length.as_secs_f64())),
                time(flush_us.checked_div(flushes).unwrap_or(0)),
                ratio(cpu.as_secs_f64(), length.as_secs_f64()) * 100.0
            );
        }
        frame
    }
}

/// A picture of some values, from 0 to the highest.
fn bars(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        let height = ratio(*value, most) * (BARS.len() - 1) as f64;
        BARS[(height.round() as usize).min(BARS.len() - 1)]
    };
    values.iter().map(bar).collect()
}

fn show(text: &str) {
    // A terminal that is gone needs no view.
    _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(until_s: f64, records_per_s: f64) -> Slice {
        Slice {
            until_s,
            is_measured: true,
            records_per_s,
            p50_us: 1,
            p99_us: 2,
            max_us: 3,
            failed: 2,
            unknown: 0,
            ..Slice::default()
        }
    }

    fn look(node: u64, leads: Option<usize>, flushes: u64) -> NodeLook {
        NodeLook { node, leads, flushes, flush_us_total: 500 * flushes, cpu: Duration::from_millis(flushes) }
    }

    #[test]
    fn the_view_tells_of_nodes_and_is_drawn_over_itself() {
        let mut view = View::new("closed loop".into(), Duration::from_secs(12));
        view.earlier = vec![look(1, Some(2), 100), look(2, Some(1), 0)];
        view.nodes = vec![look(1, Some(3), 600), look(2, None, 0)];
        let second = Duration::from_secs(1);
        let frame = view.frame(&slice(2.0, 50.0), &Latency::default(), &[slice(1.0, 100.0)], second);
        let lines: Vec<&str> = frame.lines().collect();
        assert_eq!(lines[0], "closed loop   2 s of 12 s");
        assert!(lines[1].ends_with("█▅"), "{frame}");
        assert!(lines[4].contains("leads     3 groups") && lines[4].contains("500 flushes/s"), "{frame}");
        assert!(lines[4].contains("500 us") && lines[4].contains("50 % of a core"), "{frame}");
        assert_eq!(lines[5], "node 2     does not answer");
        assert_eq!(view.wiped(), "");
        view.lines = lines.len();
        assert_eq!((view.wiped().as_str(), view.lines), ("\x1b[6A\x1b[J", 0));
    }

    #[test]
    fn reads_and_deliveries_are_told_where_there_are_any() {
        let plain = slice(1.0, 10.0);
        assert!(!line(&plain).contains("reads") && !line(&plain).contains("delivered"));
        let of = Slice { reads_per_s: 20_000.0, read_p99_us: 1500, delivered_per_s: 3.0, ..plain };
        let told = line(&Slice { failed_reads: 7, ..of });
        assert!(told.contains("reads   20.0 k/s") && told.contains("p99  1.50 ms failed 7"), "{told}");
        assert!(told.contains("delivered        3/s"), "{told}");
        let view = View::new("closed loop".into(), Duration::from_secs(12));
        let frame = view.frame(&of, &Latency::default(), &[], Duration::from_secs(1));
        assert!(frame.contains("\nreads ") && frame.contains("\ndelivered "), "{frame}");
    }

    #[test]
    fn bars_go_from_nothing_to_the_highest() {
        assert_eq!(bars(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(bars(&[0.0, 0.0]), "▁▁");
    }
}
