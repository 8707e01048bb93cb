//! What a record costs in allocations, counted in a cluster in one process.

use std::path::Path;
use std::process::Command;

use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports::{self, ReportError};
use serde_json::{Value, json};

use crate::{Args, Figures};

pub(crate) fn keys() -> Vec<&'static str> {
    vec!["allocations_per_record", "allocated_bytes_per_record"]
}

pub(crate) fn measure(args: &Args, folder: &Path) -> Result<Figures, Failure> {
    let path = folder.join("allocations.json");
    Ok(figures_of(&reports::run(Command::new(&args.allocations).arg(&path), &path)?)?)
}

fn figures_of(report: &Value) -> Result<Figures, ReportError> {
    let figure = |key: &str| {
        let number = reports::number(report, "the count of allocations", &format!("/{key}"))?;
        Ok((key.to_owned(), json!(number)))
    };
    keys().into_iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_figures_are_taken_or_it_is_an_error() {
        let report = json!({ "allocations_per_record": 0.05, "allocated_bytes_per_record": 300, "records_per_flush": 9 });
        let figures = figures_of(&report).unwrap();
        assert_eq!(
            Value::Object(figures),
            json!({ "allocations_per_record": 0.05, "allocated_bytes_per_record": 300.0 })
        );
        assert!(figures_of(&json!({ "allocations_per_record": 0.05 })).is_err());
    }
}
