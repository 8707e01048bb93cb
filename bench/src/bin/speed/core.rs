//! The core beside openraft, in memory.

use std::path::Path;
use std::process::Command;

use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports::{self, ReportError};
use serde_json::{Value, json};

use crate::{Args, Figures};

const RATIOS: &str = "core_vs_openraft";
/// The comparison's own figures: records a second of both, and what was batched.
const BOTH: &str = "core_and_openraft";
/// Clients, each with one request in flight.
const CLIENTS: [&str; 3] = ["1", "64", "4096"];

pub(crate) fn keys() -> Vec<&'static str> {
    vec![RATIOS, BOTH]
}

pub(crate) fn measure(args: &Args, folder: &Path) -> Result<Figures, Failure> {
    let path = folder.join("core.json");
    Ok(figures_of(reports::run(Command::new(&args.core).arg("--json").arg(&path), &path)?)?)
}

fn figures_of(report: Value) -> Result<Figures, ReportError> {
    let mut ratios = Figures::new();
    for clients in CLIENTS {
        let ratio = reports::number(&report, "the cores", &format!("/{clients}/ratio"))?;
        ratios.insert(clients.to_owned(), json!(ratio));
    }
    Ok([(RATIOS.to_owned(), Value::Object(ratios)), (BOTH.to_owned(), report)].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_for_each_number_of_clients_or_are_an_error() {
        let line = |ratio: f64| json!({ "ratio": ratio, "ours_per_s": 1.0 });
        let figures = figures_of(json!({ "1": line(7.0), "64": line(5.0), "4096": line(4.5) })).unwrap();
        assert_eq!(figures[RATIOS], json!({ "1": 7.0, "64": 5.0, "4096": 4.5 }));
        assert_eq!(figures[BOTH]["64"]["ours_per_s"], json!(1.0));
        assert!(figures_of(json!({ "1": line(7.0), "64": line(5.0) })).is_err());
    }
}
