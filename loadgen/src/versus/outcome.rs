//! What `loadgen versus` gives: one JSON object for programs, one table for people.

use std::fmt::{self, Write};
use std::str::FromStr;

use serde::Serialize;

use crate::clients::LoadPlan;
use crate::machine::Machine;
use crate::quick::QuickPlan;
use crate::report::{Latency, Report};
use crate::runs::Spread;
use crate::sizes::RecordSizes;

/// A load: how large records are, and how many are under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Load {
    pub(crate) record_bytes: RecordSizes,
    pub(crate) clients: u32,
    /// Of each client.
    pub(crate) in_flight: u32,
}

impl Load {
    /// That of a plan.
    pub(crate) fn of(plan: &QuickPlan) -> Load {
        let LoadPlan { clients, in_flight, sizes, .. } = &plan.load;
        Load { record_bytes: sizes.clone(), clients: *clients, in_flight: *in_flight }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} B, {} x {}", self.record_bytes, self.clients, self.in_flight)
    }
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Load, String> {
        let wrong = || format!("{text} is not a load: write it as BYTESxCLIENTSxINFLIGHT, such as 64x8x256");
        let parts: Vec<&str> = text.rsplitn(3, 'x').collect();
        let &[in_flight, clients, bytes] = parts.as_slice() else { return Err(wrong()) };
        let number = |text: &str, max: u32| match text.parse() {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            _ => Err(wrong()),
        };
        Ok(Load {
            record_bytes: bytes.parse()?,
            clients: number(clients, 65_536)?,
            in_flight: number(in_flight, 1_000_000)?,
        })
    }
}

/// A system under load.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct System {
    pub(crate) name: String,
    pub(crate) version: String,
    /// What an acknowledgement promises.
    pub(crate) promise: String,
}

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    /// Records acknowledged in the measured window, per second of it.
    pub(crate) records_per_s: f64,
    pub(crate) latency_us: Latency,
    /// Records of the whole run that certainly were not done.
    pub(crate) failed_records: u64,
    /// Records of the whole run that may have been done.
    pub(crate) unknown_records: u64,
    /// CPU time of servers and generator in microseconds per acknowledged record; null where the servers are not ours.
    pub(crate) core_us_per_record: Option<f64>,
    /// Cores that the generator used: close to 1, it was what bounded the rate, for all its clients are one thread.
    pub(crate) generator_cores: f64,
    /// Flushes of the disk, by whomever; null where it is not known.
    pub(crate) device_flushes_per_s: Option<f64>,
    /// Of an open loop: whether it was the load that was asked for.
    pub(crate) is_schedule_kept: Option<bool>,
}

impl Measured {
    /// That of ours.
    pub(crate) fn of(report: &Report) -> Measured {
        let client_us = report.client_core_us_per_record.unwrap_or(0.0);
        Measured {
            records_per_s: report.throughput_records_per_s,
            latency_us: report.latency_us,
            failed_records: report.failed_records,
            unknown_records: report.unknown_records,
            core_us_per_record: Some(report.core_us_per_record),
            generator_cores: client_us * report.throughput_records_per_s / 1e6,
            device_flushes_per_s: report.device_flushes.map(|flushes| flushes as f64 / report.measured_s),
            is_schedule_kept: report.open_loop.map(|open| open.is_schedule_kept),
        }
    }
}

/// One system under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) system: System,
    /// At least one.
    pub(crate) runs: Vec<Measured>,
}

impl Row {
    /// Where a figure of the runs lies.
    pub(crate) fn spread(&self, of: impl Fn(&Measured) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(of).collect())
    }

    /// Records of all runs that were not acknowledged.
    fn errors(&self) -> u64 {
        self.runs.iter().map(|run| run.failed_records + run.unknown_records).sum()
    }

    fn is_schedule_kept(&self) -> bool {
        self.runs.iter().all(|run| run.is_schedule_kept != Some(false))
    }
}

/// A system without figures, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// Each load with each system, in order.
    pub(crate) rows: Vec<Row>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) groups: u32,
    /// Of the open loop; null for the closed one.
    pub(crate) rate_per_s: Option<u32>,
    pub(crate) duration_s: f64,
    pub(crate) warmup_s: f64,
    pub(crate) machine: Machine,
}

const HEAD: [&str; 9] = [
    "load",
    "system",
    "an acknowledged record is",
    "records/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "errors",
];

impl Outcome {
    /// The loads, each once.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        for row in &self.rows {
            if !loads.contains(&row.load) {
                loads.push(row.load.clone());
            }
        }
        loads
    }

    /// The table for the terminal, which Markdown takes for one, too; and what is to be known about it.
    pub(crate) fn table(&self) -> String {
        let cells: Vec<[String; 9]> =
            std::iter::once(HEAD.map(str::to_owned)).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 9] = std::array::from_fn(width);
        let mut out = String::new();
        for (at, row) in cells.iter().enumerate() {
            for (cell, width) in row.iter().zip(widths) {
                _ = write!(out, "| {cell:<width$} ");
            }
            out.push_str("|\n");
            if at == 0 {
                for width in widths {
                    _ = write!(out, "|{}", "-".repeat(width + 2));
                }
                out.push_str("|\n");
            }
        }
        for LeftOut { name, reason } in &self.left_out {
            _ = writeln!(out, "\nleft out: {name}: {reason}");
        }
        out + "\n" + &self.notes().join("\n") + "\n"
    }

    /// What is to be known about the figures, line by line.
    pub(crate) fn notes(&self) -> Vec<String> {
        let machine = &self.machine;
        let runs = self.rows.first().map_or(0, |row| row.runs.len());
        let kind = match self.rate_per_s {
            None => "closed loop".to_owned(),
            Some(rate) => format!("open loop of {rate} records/s, latency from when records were due"),
        };
        vec![
            format!(
                "load: bytes of a record, clients x records in flight of each; {kind}; {} groups; {} s after {} s of warm-up; {}",
                self.groups,
                self.duration_s,
                self.warmup_s,
                match runs {
                    1 => "one run".to_owned(),
                    runs => format!("medians of {runs} runs, rates with least and most"),
                }
            ),
            format!(
                "machine: {}, {} cores and one disk shared by generator and all three servers, Linux {}",
                machine.cpu, machine.cores, machine.kernel
            ),
            "ours is encrypted (QUIC, TLS 1.3) and audited after each run; rivals speak plain TCP, unaudited"
                .to_owned(),
        ]
    }
}

fn cells(row: &Row) -> [String; 9] {
    let ms = |of: fn(&Latency) -> u64| {
        let median = row.spread(|run| of(&run.latency_us) as f64 / 1e3).median;
        if median < 10.0 { format!("{median:.2}") } else { grouped(median) }
    };
    let rate = row.spread(|run| run.records_per_s);
    let range = match row.runs.len() {
        1 => String::new(),
        _ => format!(" ({} to {})", grouped(rate.min), grouped(rate.max)),
    };
    let late = if row.is_schedule_kept() { "" } else { ", schedule not kept: INVALID" };
    let System { name, version, promise } = &row.system;
    [
        row.load.to_string(),
        format!("{name} {version}"),
        promise.clone(),
        grouped(rate.median) + &range + late,
        ms(|latency| latency.p50),
        ms(|latency| latency.p99),
        ms(|latency| latency.p99_9),
        ms(|latency| latency.max),
        row.errors().to_string(),
    ]
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
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
pub(crate) mod tests {
    use super::*;

    /// Two loads on two systems, one of them measured twice.
    pub(crate) fn outcome() -> Outcome {
        let run = |records_per_s, p50| Measured {
            records_per_s,
            latency_us: Latency { p50, p99: 4 * p50, p99_9: 10 * p50, max: 100 * p50, ..Latency::default() },
            failed_records: 1,
            unknown_records: 2,
            core_us_per_record: Some(1.5),
            generator_cores: 0.2,
            device_flushes_per_s: None,
            is_schedule_kept: None,
        };
        let system = |name: &str| System {
            name: name.to_owned(),
            version: "1.2".to_owned(),
            promise: "on <disk> & \"fsynced\"".to_owned(),
        };
        let row = |load: &str, name, runs| Row { load: load.parse().unwrap(), system: system(name), runs };
        Outcome {
            rows: vec![
                row("64x8x256", "ours", vec![run(1_234_567.0, 2_500), run(1_000_000.0, 1_500)]),
                row("64x8x256", "theirs", vec![run(8_765.4, 250_000), run(8_765.4, 250_000)]),
                row("64x1x1", "ours", vec![run(500.0, 1_500), run(500.0, 1_500)]),
            ],
            left_out: vec![LeftOut { name: "third".to_owned(), reason: "it is not installed".to_owned() }],
            groups: 8,
            rate_per_s: None,
            duration_s: 10.0,
            warmup_s: 2.0,
            machine: Machine::look(std::path::Path::new("/")),
        }
    }

    #[test]
    fn loads_are_read_and_written() {
        let load: Load = "1024x8x256".parse().unwrap();
        assert_eq!(load, Load { record_bytes: RecordSizes::Fixed(1024), clients: 8, in_flight: 256 });
        assert_eq!(load.to_string(), "1024 B, 8 x 256");
        assert_eq!("64-128x2x16".parse::<Load>().unwrap().to_string(), "64-128 B, 2 x 16");
        for wrong in ["", "64", "64x8", "64x0x256", "64x8x1000001", "8x8x8", "64x-1x1", "64xax1"] {
            assert!(wrong.parse::<Load>().is_err(), "{wrong}");
        }
        assert!("64x8".parse::<Load>().unwrap_err().contains("64x8x256"));
        assert!("8x8x8".parse::<Load>().unwrap_err().contains("16 to 1048576 bytes"));
    }

    #[test]
    fn the_table_has_medians_errors_promises_and_what_is_missing() {
        let table = outcome().table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("records/s") && lines[1].chars().all(|letter| "|-".contains(letter)));
        assert!(lines[2].contains("ours 1.2") && lines[2].contains("on <disk>"), "{table}");
        assert!(lines[2].contains("1,117,284 (1,000,000 to 1,234,567)"), "{table}");
        assert!(lines[2].contains("| 2.00 ") && lines[2].contains("| 6      |"), "{table}");
        assert!(lines[3].contains("| 8,765 ") && lines[3].contains("| 250 "), "{table}");
        let width = lines[0].chars().count();
        assert!(lines[..5].iter().all(|line| line.chars().count() == width), "{table}");
        assert!(table.contains("left out: third: it is not installed"));
        assert!(table.contains("medians of 2 runs") && table.contains("closed loop; 8 groups"));
    }

    #[test]
    fn a_load_that_was_not_sent_is_invalid() {
        let mut outcome = outcome();
        outcome.rate_per_s = Some(5_000);
        outcome.rows[1].runs[0].is_schedule_kept = Some(false);
        outcome.rows[2].runs[0].is_schedule_kept = Some(true);
        assert_eq!(outcome.table().matches("INVALID").count(), 1);
        assert!(outcome.table().contains("open loop of 5000 records/s"));
    }
}
