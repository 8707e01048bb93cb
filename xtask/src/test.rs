//! `cargo xtask test`: every test of the workspace, and one line with the totals.

use std::ops::AddAssign;

use crate::{elsewhere, sim, step};

/// Cases of a property test in a quick run.
const QUICK_CASES: &str = "16";

/// Tests that passed and failed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Totals {
    passed: u64,
    failed: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the tests. Returns whether all passed.
pub(crate) fn run(is_quick: bool) -> bool {
    let mut totals = Totals::default();
    let has_nextest = step::has_cargo_command("nextest");
    let mut units = if has_nextest {
        step::cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"])
    } else {
        step::cargo(&["test", "--workspace", "--no-fail-fast"])
    };
    units.args(step::ALL_FEATURES);
    if is_quick {
        units.args(["--lib", "--bins"]).env("PROPTEST_CASES", QUICK_CASES);
    } else if !has_nextest {
        // Everything but the doc tests, which have a step of their own.
        units.args(["--lib", "--bins", "--tests"]);
    }
    totals += counted("tests", &mut units);
    if !is_quick {
        totals += counted("doc tests", &mut step::cargo(&["test", "--workspace", "--doc", "--no-fail-fast"]));
        totals += counted("tests of the comparison", &mut step::comparison(&["test", "--no-fail-fast"]));
        for (passed, failed) in [elsewhere::hdr_log(), sim::test()] {
            totals += Totals { passed, failed };
        }
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    totals.failed == 0
}

fn counted(name: &str, command: &mut std::process::Command) -> Totals {
    let (is_good, lines) = step::run_and_read(name, command);
    let mut totals = Totals::default();
    for line in &lines {
        totals += summary(line).unwrap_or_default();
    }
    if !is_good && totals.failed == 0 {
        // It did not come as far as a test: one failure, so that the totals never look clean.
        totals.failed = 1;
    }
    totals
}

/// The counts of a summary line of nextest or of the standard harness.
fn summary(line: &str) -> Option<Totals> {
    let line = line.trim_start();
    let counts = if line.starts_with("Summary [") {
        line.split_once(" run: ")?.1
    } else {
        line.strip_prefix("test result: ")?.split_once(". ")?.1
    };
    let mut totals = Totals::default();
    for part in counts.split([',', ';']) {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        // nextest puts remarks behind a count: `10 passed (1 slow)`.
        match what.split(" (").next().unwrap_or(what) {
            "passed" => totals.passed += number,
            "failed" | "timed out" | "exec failed" => totals.failed += number,
            _ => {}
        }
    }
    Some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_harnesses_are_counted() {
        let counts = |line| summary(line).map(|totals| (totals.passed, totals.failed));
        assert_eq!(counts("     Summary [   0.5s] 12 tests run: 12 passed, 0 skipped"), Some((12, 0)));
        assert_eq!(
            counts(
                "Summary [ 9s] 14 tests run: 10 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 3 skipped"
            ),
            Some((10, 4))
        );
        assert_eq!(
            counts(
                "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s"
            ),
            Some((3, 2))
        );
        assert_eq!(counts("test tests::summaries ... ok"), None);
    }

    #[test]
    fn a_step_that_dies_before_its_tests_counts_as_a_failure() {
        let mut command = std::process::Command::new("false");
        assert_eq!(counted("false", &mut command), Totals { passed: 0, failed: 1 });
    }
}
