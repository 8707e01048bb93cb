//! `loadgen compare`: whether one series of runs is slower than another, or only different.
//!
//! With few runs of a noisy machine the question is whether the difference is more than chance: the exact test of Mann and
//! Whitney (1947) asks how often runs of one and the same program would come to lie so far apart, and assumes nothing of how they spread.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::mix::{Mix, MixConfig};
use crate::plot;
use crate::report::count;

/// A difference that chance makes more often than this is none.
const CHANCE_MAX: f64 = 0.05;

/// What is compared: name, place in a report, whether more is better.
const FIGURES: [(&str, &str, bool); 6] = [
    ("throughput", "/throughput_records_per_s", true),
    ("p50", "/latency_us/p50", false),
    ("p99", "/latency_us/p99", false),
    ("p99.9", "/latency_us/p99_9", false),
    ("core-us a record", "/core_us_per_record", false),
    ("flushed bytes a record", "/flushed_bytes_per_record", false),
];

/// The same of what only some loads have: compared where both have it.
const FIGURES_OF_A_MIX: [(&str, &str, bool); 4] = [
    ("reads", "/mix/reads/reads_per_s", true),
    ("read p99", "/mix/reads/latency_us/p99", false),
    ("delivered", "/mix/tails/delivered_per_s", true),
    ("delivery p99", "/mix/tails/latency_us/p99", false),
];

/// Why two files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is no JSON: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{} has no figure {figure}: give files that `loadgen quick --json` or `run --json` wrote", path.display())]
    NoFigure { path: PathBuf, figure: &'static str },
    #[error("{} and {} are of different loads ({what}): compare what was measured alike", a.display(), b.display())]
    OtherLoad { a: PathBuf, b: PathBuf, what: String },
}

/// How a figure of the second series stands to the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Not more apart than chance makes it, or than is tolerated.
    Same,
    /// Better.
    Better,
    /// Worse.
    Worse,
    /// Too few runs to say.
    TooFew,
}

/// A figure of two series.
#[derive(Clone, Debug, Serialize)]
struct Line {
    figure: &'static str,
    a_median: f64,
    b_median: f64,
    /// The second beside the first.
    ratio: f64,
    /// How often chance makes such a difference.
    chance: f64,
    verdict: Verdict,
}

/// Compares two files. Returns whether nothing is worse.
///
/// # Errors
/// [`CompareError`].
pub(crate) fn run(
    a: &Path,
    b: &Path,
    tolerance: f64,
    (is_any_config, is_json): (bool, bool),
) -> Result<bool, CompareError> {
    let (one, two) = (Series::read(a)?, Series::read(b)?);
    if !is_any_config {
        one.check_alike(&two)?;
    }
    let mut lines = Vec::new();
    for (figure, at, is_more_better) in FIGURES {
        // On a cluster that somebody else runs (`run --json`) nobody knows what the nodes use.
        if !one.has(at) && !two.has(at) && figure != FIGURES[0].0 {
            continue;
        }
        lines.push(line(
            figure,
            &one.values(figure, at)?,
            &two.values(figure, at)?,
            is_more_better,
            tolerance,
        ));
    }
    for (figure, at, is_more_better) in FIGURES_OF_A_MIX {
        if let (Ok(one), Ok(two)) = (one.values(figure, at), two.values(figure, at)) {
            lines.push(line(figure, &one, &two, is_more_better, tolerance));
        }
    }
    if is_json {
        println!("{}", serde_json::to_string_pretty(&lines).expect("lines serialize"));
    } else {
        print(&one, &two, &lines);
    }
    Ok(!lines.iter().any(|line| line.verdict == Verdict::Worse))
}

/// The runs of a file.
struct Series {
    path: PathBuf,
    runs: Vec<Value>,
}

impl Series {
    fn read(path: &Path) -> Result<Series, CompareError> {
        let text =
            fs::read(path).map_err(|source| CompareError::Read { path: path.to_path_buf(), source })?;
        let value: Value = serde_json::from_slice(&text)
            .map_err(|source| CompareError::Parse { path: path.to_path_buf(), source })?;
        // One run, or several by `--repeat`.
        let runs = value.get("runs").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![value]);
        Ok(Series { path: path.to_path_buf(), runs })
    }

    fn has(&self, at: &str) -> bool {
        self.runs.iter().any(|run| run.pointer(at).is_some())
    }

    fn values(&self, figure: &'static str, at: &str) -> Result<Vec<f64>, CompareError> {
        let value = |run: &Value| run.pointer(at).and_then(Value::as_f64);
        let values: Option<Vec<f64>> = self.runs.iter().map(value).collect();
        let none = || CompareError::NoFigure { path: self.path.clone(), figure };
        values.filter(|values| !values.is_empty()).ok_or_else(none)
    }

    /// Figures of different loads say nothing about each other.
    fn check_alike(&self, other: &Series) -> Result<(), CompareError> {
        let config = |series: &Series| {
            series.runs.first().and_then(|run| run.get("config")).cloned().unwrap_or_default()
        };
        let (mut one, mut two) = (config(self), config(other));
        let (Some(one), Some(two)) = (one.as_object_mut(), two.as_object_mut()) else { return Ok(()) };
        // A file that knows of no mix is of a load without one; so with faults, and with a rate if nothing arrived by itself.
        for config in [&mut *one, &mut *two] {
            config.entry("mix").or_insert_with(|| serde_json::json!(MixConfig::of(&Mix::default())));
            config.entry("faults").or_insert_with(|| serde_json::json!([]));
            if config.get("arrivals").is_none_or(Value::is_null) {
                config.entry("rate_per_s").or_insert(Value::Null);
            }
        }
        let differs = |key: &&String| two.get(*key).is_some_and(|value| *value != one[*key]);
        match one.keys().find(differs) {
            None => Ok(()),
            Some(key) => Err(CompareError::OtherLoad {
                a: self.path.clone(),
                b: other.path.clone(),
                what: format!("{key} is {} and {}", one[key], two[key]),
            }),
        }
    }
}

fn line(figure: &'static str, a: &[f64], b: &[f64], is_more_better: bool, tolerance: f64) -> Line {
    let (a_median, b_median) = (median(a), median(b));
    let ratio = if a_median == 0.0 { 1.0 } else { b_median / a_median };
    let chance = chance(a, b);
    let is_apart = (ratio - 1.0).abs() > tolerance;
    let verdict = if chance_min(a.len(), b.len()) > CHANCE_MAX {
        Verdict::TooFew
    } else if !is_apart || chance > CHANCE_MAX {
        Verdict::Same
    } else if (ratio > 1.0) == is_more_better {
        Verdict::Better
    } else {
        Verdict::Worse
    };
    Line { figure, a_median, b_median, ratio, chance, verdict }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2] + values[(values.len() - 1) / 2]) / 2.0
}

/// How often two series of one and the same program lie as far apart as these, either way: exact where no values are equal; where some
/// are, each counts half, and what is between two steps is taken for the one nearer to the middle.
fn chance(a: &[f64], b: &[f64]) -> f64 {
    let score = |one: &f64, two: &f64| match one.total_cmp(two) {
        std::cmp::Ordering::Greater => 2,
        std::cmp::Ordering::Equal => 1,
        std::cmp::Ordering::Less => 0,
    };
    // Twice the statistic, so that ties stay whole numbers.
    let twice: usize = a.iter().flat_map(|one| b.iter().map(move |two| score(one, two))).sum();
    let least = twice.min(2 * a.len() * b.len() - twice);
    let ways = ways(a.len(), b.len());
    let all: f64 = ways.iter().sum();
    let extreme: f64 =
        ways.iter().enumerate().filter(|(at, _)| 2 * at <= least + 1).map(|(_, ways)| ways).sum();
    (2.0 * extreme / all).min(1.0)
}

/// The least that [`chance`] can be with so many runs.
fn chance_min(a: usize, b: usize) -> f64 {
    2.0 / ways(a, b).iter().sum::<f64>()
}

/// In how many orders of `a` and `b` values the first series wins over the second so many times.
fn ways(a: usize, b: usize) -> Vec<f64> {
    // The last value is of the first series, and wins over all of the second; or of the second, and wins over none.
    let mut table = vec![vec![Vec::new(); b + 1]; a + 1];
    for i in 0..=a {
        for j in 0..=b {
            let mut ways = vec![0.0; i * j + 1];
            if i == 0 || j == 0 {
                ways[0] = 1.0;
            } else {
                for (wins, count) in table[i - 1][j].iter().enumerate() {
                    ways[wins + j] += count;
                }
                for (wins, count) in table[i][j - 1].iter().enumerate() {
                    ways[wins] += count;
                }
            }
            table[i][j] = ways;
        }
    }
    std::mem::take(&mut table[a][b])
}

fn print(one: &Series, two: &Series, lines: &[Line]) {
    println!(
        "A {} ({} runs), B {} ({} runs); medians",
        one.path.display(),
        one.runs.len(),
        two.path.display(),
        two.runs.len()
    );
    for line in lines {
        let show = |value: f64| match line.figure {
            "throughput" | "reads" | "delivered" => format!("{}/s", count(value)),
            "p50" | "p99" | "p99.9" | "read p99" | "delivery p99" => plot::duration(value),
            _ => format!("{value:.2}"),
        };
        let verdict = match line.verdict {
            Verdict::Same => "same",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::TooFew => "too few runs to say: measure with --repeat 4 or more",
        };
        println!(
            "{:<24} {:>10} {:>10}  {:+6.1} %  chance {:.3}  {verdict}",
            line.figure,
            show(line.a_median),
            show(line.b_median),
            100.0 * (line.ratio - 1.0),
            line.chance
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_that_of_the_tables() {
        // Mann and Whitney 1947, table I, both sides: 4 and 4 fully apart 2/70; 3 and 4 with one overlap 4/35.
        assert!((chance(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]) - 2.0 / 70.0).abs() < 1e-12);
        assert!((chance(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0, 7.0]) - 4.0 / 35.0).abs() < 1e-12);
        assert!((chance(&[1.0, 1.0], &[1.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!((chance(&[5.0, 6.0, 7.0, 8.0], &[1.0, 2.0, 3.0, 4.0]) - 2.0 / 70.0).abs() < 1e-12);
        // One value in both: 4 of 70 orders, and not 2.
        assert!((chance(&[1.0, 2.0, 3.0, 4.0], &[4.0, 5.0, 6.0, 7.0]) - 4.0 / 70.0).abs() < 1e-12);
        assert_eq!(ways(5, 5).iter().sum::<f64>(), 252.0);
    }

    #[test]
    fn worse_is_worse_and_noise_is_nothing() {
        let (slow, fast) = ([10.0, 11.0, 10.5, 10.2], [20.0, 21.0, 19.0, 22.0]);
        let noisy = [10.1, 10.9, 10.4, 10.3];
        assert_eq!(line("throughput", &slow, &fast, true, 0.05).verdict, Verdict::Better);
        assert_eq!(line("throughput", &fast, &slow, true, 0.05).verdict, Verdict::Worse);
        assert_eq!(line("p99", &slow, &fast, false, 0.05).verdict, Verdict::Worse);
        assert_eq!(line("p99", &slow, &noisy, false, 0.0).verdict, Verdict::Same);
        // Apart, but by less than is tolerated.
        assert_eq!(
            line("p99", &[10.0, 10.01, 10.02, 10.03], &[10.1, 10.11, 10.12, 10.13], false, 0.05).verdict,
            Verdict::Same
        );
        assert_eq!(line("p99", &slow[..1], &fast[..1], false, 0.05).verdict, Verdict::TooFew);
    }

    #[test]
    fn files_are_compared_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = |p99: f64, groups: u64| {
            serde_json::json!({
                "throughput_records_per_s": 1000.0, "latency_us": { "p50": 1, "p99": p99, "p99_9": 3 },
                "core_us_per_record": 1.0, "flushed_bytes_per_record": 200.0, "config": { "groups": groups },
            })
        };
        let file = |name: &str, value: Value| {
            let path = folder.path().join(name);
            fs::write(&path, value.to_string()).unwrap();
            path
        };
        let runs = |from: f64| Value::Array((0..5).map(|at| run(from + f64::from(at), 8)).collect());
        let a = file("a", serde_json::json!({ "runs": runs(100.0) }));
        let b = file("b", serde_json::json!({ "runs": runs(200.0) }));
        assert!(super::run(&a, &a, 0.05, (false, false)).unwrap());
        assert!(!super::run(&a, &b, 0.05, (false, false)).unwrap());
        assert!(super::run(&b, &a, 0.05, (false, true)).unwrap());
        let other = file("other", run(100.0, 64));
        assert!(matches!(super::run(&a, &other, 0.05, (false, false)), Err(CompareError::OtherLoad { .. })));
        assert!(super::run(&a, &other, 0.05, (true, false)).unwrap());
        // Files from before there was a mix are read, and are of loads without one.
        let mixed = |mix: Mix| {
            let mut runs = runs(100.0);
            for run in runs.as_array_mut().unwrap() {
                run["config"]["mix"] = serde_json::json!(MixConfig::of(&mix));
            }
            serde_json::json!({ "runs": runs })
        };
        let plain = file("plain", mixed(Mix::default()));
        assert!(super::run(&a, &plain, 0.05, (false, false)).unwrap());
        let reading = file("reading", mixed(Mix { reads: 0.2, ..Mix::default() }));
        for (a, b) in [(&a, &reading), (&reading, &a), (&plain, &reading)] {
            let error = super::run(a, b, 0.05, (false, false)).unwrap_err();
            assert!(error.to_string().contains("mix is {"), "{error}");
        }
        let faulty = file("faulty", {
            let mut one = run(100.0, 8);
            one["config"]["faults"] = serde_json::json!(["kill@2000ms+2000ms:leader"]);
            one
        });
        let error = super::run(&a, &faulty, 0.05, (false, false)).unwrap_err();
        assert!(error.to_string().contains("faults is [] and"), "{error}");
        let empty = file("empty", serde_json::json!({}));
        assert!(matches!(super::run(&a, &empty, 0.05, (false, false)), Err(CompareError::NoFigure { .. })));
        assert!(matches!(
            super::run(&a, Path::new("none"), 0.05, (false, false)),
            Err(CompareError::Read { .. })
        ));
    }
}
