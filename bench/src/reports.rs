//! Programs that end well only when their figures are good, and what is taken from the reports that they write.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde_json::{Value, json};

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program and its arguments.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The program failed, or found its own figures bad.
    #[error("{program} failed: {status}\n{said}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// What it wrote is not there.
    #[error("cannot read the report {}: {source}", path.display())]
    Missing {
        /// The report.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it wrote is not JSON.
    #[error("the report {} is not JSON: {source}", path.display())]
    Malformed {
        /// The report.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The report says nothing about a figure.
    #[error("the report of {load} has no {at}")]
    NoFigure {
        /// What was measured.
        load: String,
        /// Where the figure should be.
        at: String,
    },
    /// No run is left to take a figure from.
    #[error("{load}: leaders changed in every run")]
    NeverSteady {
        /// What was measured.
        load: String,
    },
}

/// Runs a program that writes its report to `path`, and reads that.
///
/// # Errors
/// [`ReportError`], with what the program said.
pub fn run(command: &mut Command, path: &Path) -> Result<Value, ReportError> {
    let program = format!("{command:?}");
    // What an earlier program wrote must not be taken for what this one did.
    let _ = std::fs::remove_file(path);
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => return Err(ReportError::Start { program, source }),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ReportError::Failed { program, status: output.status, said });
    }
    let text =
        std::fs::read(path).map_err(|source| ReportError::Missing { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&text)
        .map_err(|source| ReportError::Malformed { path: path.to_path_buf(), source })
}

/// Whether each group kept its leader while a load was measured.
#[must_use]
fn is_steady(report: &Value) -> bool {
    report["leader_changes"] == json!(0)
}

/// Runs of a load in a row, if leaders change in each: then the machine is busy with something else, and figures would be
/// of that.
const ATTEMPTS_MAX: u32 = 3;

/// The report of the first run of a load in which no leader changed.
///
/// # Errors
/// Those of the runs, and [`ReportError::NeverSteady`] after three.
pub fn steady(load: &str, mut run: impl FnMut() -> Result<Value, ReportError>) -> Result<Value, ReportError> {
    for _ in 0..ATTEMPTS_MAX {
        let report = run()?;
        if is_steady(&report) {
            return Ok(report);
        }
        println!("{load}: once more, leaders changed");
    }
    Err(ReportError::NeverSteady { load: load.to_owned() })
}

/// The number at a JSON pointer of a report.
///
/// # Errors
/// [`ReportError::NoFigure`].
pub fn number(report: &Value, load: &str, at: &str) -> Result<f64, ReportError> {
    let found = report.pointer(at).and_then(Value::as_f64);
    found.ok_or_else(|| ReportError::NoFigure { load: load.to_owned(), at: at.to_owned() })
}

/// What several reports of a load say together: the median of numbers, or whether all flags are set.
///
/// # Errors
/// [`ReportError::NoFigure`] when one of them says nothing, or there is none.
pub fn together(reports: &[Value], load: &str, at: &str) -> Result<Value, ReportError> {
    let values = || reports.iter().filter_map(|report| report.pointer(at));
    let numbers: Vec<f64> = values().filter_map(Value::as_f64).collect();
    let flags: Vec<bool> = values().filter_map(Value::as_bool).collect();
    match median(numbers.clone()) {
        Some(median) if numbers.len() == reports.len() => Ok(json!(median)),
        _ if !flags.is_empty() && flags.len() == reports.len() => Ok(json!(flags.iter().all(|flag| *flag))),
        _ => Err(ReportError::NoFigure { load: load.to_owned(), at: at.to_owned() }),
    }
}

/// The median, between the middle two of an even number; `None` of nothing.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(per_s: f64, is_kept: bool) -> Value {
        json!({ "throughput_records_per_s": per_s, "open_loop": { "is_schedule_kept": is_kept } })
    }

    #[test]
    fn figures_are_medians_and_flags_hold_only_together() {
        let reports = [report(3.0, true), report(1.0, true), report(2.0, false)];
        assert_eq!(together(&reports, "load", "/throughput_records_per_s").unwrap(), json!(2.0));
        assert_eq!(together(&reports, "load", "/open_loop/is_schedule_kept").unwrap(), json!(false));
        assert_eq!(together(&reports[..2], "load", "/open_loop/is_schedule_kept").unwrap(), json!(true));
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_run_in_which_leaders_changed_is_repeated_but_not_for_ever() {
        let mut changes = [2, 0].into_iter();
        let found = steady("load", || Ok(json!({ "leader_changes": changes.next() }))).unwrap();
        assert_eq!((found["leader_changes"].as_u64(), changes.next()), (Some(0), None));
        let mut runs = 0;
        let never = steady("load", || {
            runs += 1;
            Ok(json!({ "leader_changes": 1 }))
        });
        assert!(matches!(never, Err(ReportError::NeverSteady { .. })));
        assert_eq!(runs, ATTEMPTS_MAX);
    }

    #[test]
    fn a_figure_that_one_report_lacks_is_an_error_and_no_median_of_the_others() {
        let reports = [report(3.0, true), json!({ "open_loop": null })];
        for at in ["/throughput_records_per_s", "/open_loop/is_schedule_kept", "/nothing"] {
            assert!(matches!(together(&reports, "load", at), Err(ReportError::NoFigure { .. })), "{at}");
        }
        assert!(together(&[], "load", "/throughput_records_per_s").is_err());
    }

    #[test]
    fn a_program_that_fails_or_writes_nothing_gives_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        // Of an earlier program.
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(run(&mut Command::new("true"), &path), Err(ReportError::Missing { .. })));
        assert!(matches!(run(&mut Command::new("false"), &path), Err(ReportError::Failed { .. })));
        let mut absent = Command::new("no-such-program-anywhere");
        assert!(matches!(run(&mut absent, &path), Err(ReportError::Start { .. })));
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf '{\"leader_changes\": 0}' > \"$0\""]).arg(&path);
        assert!(is_steady(&run(&mut shell, &path).unwrap()));
        assert!(!is_steady(&json!({ "leader_changes": 1 })) && !is_steady(&json!({})));
    }
}
