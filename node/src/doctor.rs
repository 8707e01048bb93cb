//! What a machine has to be like, looked at: each finding says what was found, what is right, what it costs, and how to
//! mend it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Access, DoctorArgs};
use crate::config::Sources;
use crate::config::settings::NodeConfig;
use crate::say::{Failure, say};

mod bench;
mod clocks;
mod cpu;
mod disk;
mod kernel;
mod loopback;
mod measure;
mod memory;
mod network;
mod node;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// As it should be.
    Good,
    /// It cannot be known here.
    Unknown,
    /// It works, at a cost.
    Note,
    /// It does not work, or not safely.
    Bad,
}

/// What was found about one thing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How bad it is.
    pub(crate) level: Level,
    /// What was found.
    pub(crate) found: String,
    /// What is right; empty where that was found.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) right: &'static str,
    /// What it costs as it is.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) cost: &'static str,
    /// How to mend it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mend: String,
}

/// What is right of something that is not, what it costs, and how to mend it.
pub(crate) struct Remedy {
    pub(crate) right: &'static str,
    pub(crate) cost: &'static str,
    pub(crate) mend: String,
}

impl Finding {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, level: Level::Good, found: found.into(), right: "", cost: "", mend: String::new() }
    }

    pub(crate) fn unknown(name: &'static str, why: impl Into<String>) -> Finding {
        Finding { level: Level::Unknown, ..Finding::good(name, why) }
    }

    pub(crate) fn of(name: &'static str, level: Level, found: impl Into<String>, remedy: Remedy) -> Finding {
        let Remedy { right, cost, mend } = remedy;
        Finding { name, level, found: found.into(), right, cost, mend }
    }
}

/// The machine, as its files show it.
pub(crate) struct Host {
    /// Where `proc` and `sys` are: `/`, or a copy of another machine's.
    root: PathBuf,
}

impl Host {
    pub(crate) fn new(root: PathBuf) -> Host {
        Host { root }
    }

    /// A file below `/`, without the spaces around its text.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Files whose text is a number.
    pub(crate) fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// Names in a folder below `/`, in order.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// `iroh-raft doctor`.
pub(crate) fn run(args: &DoctorArgs, access: &Access, json: bool) -> Result<ExitCode, Failure> {
    let sources = Sources::new(args.node.config.clone(), args.node.settings.clone());
    let (config, mut findings) = node::config(&sources);
    if args.bench {
        if let Some(finding) = findings.iter().find(|finding| finding.level > Level::Good) {
            let refusal =
                format!("--bench needs the file of a node that can be started (--config): {}", finding.found);
            return Err(Failure::Refused(refusal));
        }
        findings.extend(bench::run(&config)?);
    }
    findings.extend(look(&Host::new(args.root.clone()), &config));
    findings.extend(clocks::look(&config, sources.file.is_some(), access));
    if json {
        findings.iter().for_each(|finding| say(true, finding, |_| String::new()));
    } else {
        out!("{}", text(&findings));
    }
    let is_bad = findings.iter().any(|finding| finding.level == Level::Bad);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything that is looked at on this machine.
fn look(host: &Host, config: &NodeConfig) -> Vec<Finding> {
    let parts = [
        kernel::look(host, config),
        cpu::look(host, config),
        memory::look(host, config),
        disk::look(host, config),
        network::look(host, config),
        node::look(config),
        measure::look(config),
    ];
    parts.into_iter().flatten().collect()
}

/// For people: what is wrong first, with all there is to say; then what is well, a line each.
fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut order: Vec<&Finding> = findings.iter().collect();
    order.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    for Finding { name, level, found, right, cost, mend } in order {
        let mark = match level {
            Level::Good => "good",
            Level::Unknown => "?   ",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        _ = writeln!(out, "{mark}  {name}: {found}");
        for (what, text) in [("right", *right), ("cost", *cost), ("mend", mend.as_str())] {
            if !text.is_empty() {
                _ = writeln!(out, "      {what}: {text}");
            }
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    _ = write!(
        out,
        "{} bad, {} notes, {} unknown, {} good",
        count(Level::Bad),
        count(Level::Note),
        count(Level::Unknown),
        count(Level::Good)
    );
    out
}

#[cfg(test)]
mod tests;
