//! Workloads: the options of a load in a TOML file, or under a name. What is said on the command line as well counts more.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory as _;
use toml::de::{DeTable, DeValue};

use crate::Cli;

/// Workloads that need no file.
const NAMED: [(&str, &str); 6] = [
    ("small", "record-bytes = 64\nin-flight = 4096\n"),
    ("large", "record-bytes = 65536\nin-flight = 16\n"),
    ("mixed", "record-bytes = \"64x80,1024x18,65536x2\"\nin-flight = 512\nreads = 0.05\ntails = 1\n"),
    ("latency", "clients = 1\nin-flight = 1\n"),
    ("skew", "groups = 64\nskew = \"zipf:1.0\"\nin-flight = 1024\n"),
    ("many-groups", "groups = 4096\nin-flight = 4096\n"),
];

/// What a workload comes from.
struct Source<'a> {
    name: &'a str,
    text: String,
}

/// Puts the options of a workload before those that were given.
///
/// # Errors
/// What is wrong with the file, and what would be right.
pub(crate) fn expand(args: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let Some(name) = workload_of(&args) else { return Ok(args) };
    let Some(command) = args.get(1).and_then(|command| command.to_str()) else { return Ok(args) };
    let mut options = options(command, &Source::find(&name)?)?;
    let mut all = args[..2].to_vec();
    all.append(&mut options);
    all.extend_from_slice(&args[2..]);
    Ok(all)
}

/// The value of `--workload`.
fn workload_of(args: &[OsString]) -> Option<String> {
    let mut args = args.iter().filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--workload") {
            Some("") => return args.next().map(str::to_owned),
            Some(value) if value.starts_with('=') => return Some(value[1..].to_owned()),
            _ => {}
        }
    }
    None
}

impl Source<'_> {
    fn find(name: &str) -> Result<Source<'_>, String> {
        if let Some((_, text)) = NAMED.iter().find(|(named, _)| *named == name) {
            return Ok(Source { name, text: (*text).to_owned() });
        }
        let names = NAMED.map(|(named, _)| named).join(", ");
        match std::fs::read_to_string(Path::new(name)) {
            Ok(text) => Ok(Source { name, text }),
            Err(error) => Err(format!("--workload {name}: {error}; name a TOML file, or one of {names}")),
        }
    }
}

/// The options that a workload stands for.
fn options(command: &str, source: &Source<'_>) -> Result<Vec<OsString>, String> {
    let name = source.name;
    let table = DeTable::parse(&source.text).map_err(|error| format!("--workload {name}: {error}"))?;
    let cli = Cli::command();
    let known = cli.find_subcommand(command).into_iter().flat_map(|found| found.get_arguments());
    let known: Vec<&str> = known.filter_map(|argument| argument.get_long()).collect();
    let mut options = Vec::new();
    let is_named = NAMED.iter().any(|(named, _)| *named == name);
    for (key, value) in table.get_ref() {
        let (key, value) = (key.get_ref(), value.get_ref());
        let option = key.replace('_', "-");
        // A cluster that runs already has the groups that it has.
        if is_named && !known.contains(&option.as_str()) {
            continue;
        }
        if option == "workload" || !known.contains(&option.as_str()) {
            let known = known.iter().filter(|option| !["workload", "help"].contains(option));
            let known: Vec<&str> = known.copied().collect();
            return Err(format!(
                "--workload {name}: {key:?} is no option of loadgen {command}; there are {}",
                known.join(", ")
            ));
        }
        let values = match value {
            DeValue::Array(values) => values.iter().map(|value| value.get_ref()).collect(),
            one => vec![one],
        };
        for value in values {
            options.extend(said(&option, value).map_err(|problem| {
                format!("--workload {name}: {key}: {problem}; write a text, a number, true or false, or a list of these")
            })?);
        }
    }
    Ok(options)
}

/// An option as it is written on the command line.
fn said(option: &str, value: &DeValue<'_>) -> Result<Vec<OsString>, String> {
    let flag = OsString::from(format!("--{option}"));
    Ok(match value {
        DeValue::Boolean(false) => Vec::new(),
        DeValue::Boolean(true) => vec![flag],
        DeValue::String(text) => vec![flag, text.to_string().into()],
        DeValue::Integer(number) => vec![flag, number.to_string().into()],
        DeValue::Float(number) => vec![flag, number.to_string().into()],
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            return Err("a date, a table or a list in a list is none".to_owned());
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::mix::{Mix, ReadKind};

    fn expanded(args: &[&str]) -> Result<Vec<String>, String> {
        let args = args.iter().map(OsString::from).collect();
        expand(args).map(|args| args.into_iter().map(|arg| arg.into_string().unwrap()).collect())
    }

    #[test]
    fn every_named_workload_is_one() {
        for (name, _) in NAMED {
            for command in [&["quick"][..], &["find", "--slo", "p99=5ms"], &["sweep"], &["run"]] {
                let args = [&["loadgen", command[0], "--workload", name], &command[1..]].concat();
                Cli::try_parse_from(expanded(&args).unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn what_is_said_as_well_counts_more() {
        let args = expanded(&["loadgen", "quick", "--workload=latency", "--clients", "3"]).unwrap();
        assert_eq!(args[2..6], ["--clients", "1", "--in-flight", "1"]);
        let crate::Command::Quick(quick) = Cli::try_parse_from(args).unwrap().command else { unreachable!() };
        let plan = quick.plan().unwrap();
        assert_eq!((plan.load.clients, plan.load.in_flight), (3, 1));
    }

    #[test]
    fn a_file_is_a_workload_and_its_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("load.toml");
        let path = path.to_str().unwrap();
        let expand = |text: &str| {
            std::fs::write(path, text).unwrap();
            expanded(&["loadgen", "quick", "--workload", path])
        };
        let args =
            expand("rate = 500\narrivals = \"poisson\"\nfault = [\"kill@1s\", \"stop@2s:all\"]\n").unwrap();
        let crate::Command::Quick(quick) = Cli::try_parse_from(args).unwrap().command else { unreachable!() };
        let plan = quick.plan().unwrap();
        assert_eq!((plan.load.per_s, plan.faults.len()), (Some(500), 2));
        let args = expand("reads = 0.2\nread_kind = \"local\"\ntails = 2\nsessions = true\n").unwrap();
        let crate::Command::Quick(quick) = Cli::try_parse_from(args).unwrap().command else { unreachable!() };
        let mix = quick.plan().unwrap().load.mix;
        assert_eq!(mix, Mix { reads: 0.2, read_kind: ReadKind::Local, tails: 2, sessions: true });
        for (text, says) in [
            ("records = 3", "no option of loadgen quick; there are record-bytes"),
            ("rate = ", "TOML parse error"),
            ("rate = { a = 1 }", "a table or a list"),
        ] {
            let error = expand(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(expanded(&["loadgen", "quick", "--workload", "tiny"]).unwrap_err().contains("many-groups"));
    }
}
