//! `loadgen versus`: ours and its rivals in turn, under the same loads, in one table and one picture.
//!
//! Each run has a cluster of its own on a disk of its own folder, so that no run pays for the one before. Systems take
//! turns, so that a machine that grows slower does so for all of them.

pub(crate) mod outcome;
mod picture;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use crate::args::Quick;
use crate::clients::LoadPlan;
use crate::cluster::ClusterPlan;
use crate::machine::Machine;
use crate::quick::{self, Files, Folder, QuickError, QuickPlan};
use crate::rival::load::measure;
use crate::rival::{Rival, RivalError, SERVERS, Source, process};
use outcome::{LeftOut, Load, Measured, Outcome, Row, System};

/// What an acknowledgement of ours promises.
const PROMISE: &str = "on disk (fsync) at 2 of 3, encrypted";

/// What `loadgen versus` takes.
#[derive(Args, Debug)]
pub(crate) struct VersusArgs {
    /// Which rivals.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "etcd,nats")]
    rivals: Vec<Rival>,
    /// Addresses of an etcd cluster that runs, such as http://10.0.0.1:2379. Keys under `loadgen/` are written, and stay.
    /// Default: three servers of its own.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd: Vec<String>,
    /// Addresses of NATS servers that run, with JetStream, such as nats://10.0.0.1:4222. Streams `loadgen-1` and so on are
    /// made anew, and stay. Default: three servers of its own.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    nats: Vec<String>,
    /// A load, as BYTESxCLIENTSxINFLIGHT, instead of the one of --record-bytes, --clients and --in-flight. May be given several times.
    #[arg(long = "load", value_name = "LOAD")]
    loads: Vec<Load>,
    /// File for the picture.
    #[arg(long)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    quick: Quick,
}

/// What `loadgen versus` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct VersusPlan {
    /// Each with a plan of ours.
    loads: Vec<QuickPlan>,
    /// Those that can be measured.
    rivals: Vec<(Rival, Source)>,
    left_out: Vec<LeftOut>,
    repeat: u32,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

impl VersusArgs {
    /// The plan, with the programs of this machine.
    ///
    /// # Errors
    /// What cannot be, in a sentence.
    pub(crate) fn plan(self) -> Result<VersusPlan, String> {
        self.plan_with(process::find)
    }

    fn plan_with(self, find: impl Fn(&str) -> Option<PathBuf>) -> Result<VersusPlan, String> {
        let plan = self.quick.plan()?;
        if usize::from(plan.cluster.nodes) != SERVERS {
            return Err("versus compares clusters of three: leave out --nodes".into());
        }
        if plan.load.client_threads > 1 || plan.is_embedded || plan.data_dir.is_some() {
            return Err("versus has one thread of clients for each system, on the network, in folders of its own: leave out --client-threads, --embedded and --data-dir".into());
        }
        if !plan.faults.is_empty() || plan.replacements > 0 {
            return Err("versus has no faults: leave out --fault and --replace-nodes".into());
        }
        let Files { hdr_log, hgrm, html, ack_log } = &plan.files;
        if [hdr_log, hgrm, html, ack_log].into_iter().any(Option::is_some) {
            return Err(
                "versus writes --json and --svg: leave out --hdr-log, --hgrm, --html and --ack-log".into()
            );
        }
        for (urls, flag, rival) in [(&self.etcd, "--etcd", Rival::Etcd), (&self.nats, "--nats", Rival::Nats)]
        {
            if !urls.is_empty() && !self.rivals.contains(&rival) {
                return Err(format!("{flag} is given, but --rivals leaves it out"));
            }
        }
        let (mut rivals, mut left_out) = (Vec::new(), Vec::new());
        for (at, rival) in self.rivals.iter().copied().enumerate() {
            if self.rivals[..at].contains(&rival) {
                return Err(format!("--rivals names {} twice", rival.name()));
            }
            let urls = match rival {
                Rival::Etcd => &self.etcd,
                Rival::Nats => &self.nats,
            };
            match find(rival.program()) {
                _ if !urls.is_empty() => rivals.push((rival, Source::Running(urls.clone()))),
                Some(program) => rivals.push((rival, Source::Program(program))),
                None => left_out.push(LeftOut {
                    name: rival.name().to_owned(),
                    reason: format!(
                        "the program {} is not installed: {}",
                        rival.program(),
                        rival.how_to_install()
                    ),
                }),
            }
        }
        let (repeat, json) = (plan.repeat, plan.json.clone());
        let base = QuickPlan { repeat: 1, json: None, ..plan };
        let loads = if self.loads.is_empty() { vec![Load::of(&base)] } else { self.loads };
        let with = |load: &Load| {
            let Load { record_bytes, clients, in_flight } = load.clone();
            let cluster = ClusterPlan { record_bytes: record_bytes.max(), ..base.cluster.clone() };
            let load = LoadPlan { sizes: record_bytes, clients, in_flight, ..base.load.clone() };
            QuickPlan { cluster, load, ..base.clone() }
        };
        Ok(VersusPlan {
            loads: loads.iter().map(with).collect(),
            rivals,
            left_out,
            repeat,
            json,
            svg: self.svg,
        })
    }
}

/// Measures everything, prints the table, writes the files. Returns whether every audit was clean and every rival that is here
/// gave its figures.
///
/// # Errors
/// [`QuickError`] of a run of ours that could not be made, or of a file; processes are gone then, too.
pub(crate) fn run(plan: &VersusPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    for LeftOut { name, reason } in &plan.left_out {
        eprintln!("{name} is left out: {reason}");
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut left_out = plan.left_out.clone();
    let mut is_good = true;
    for round in 1..=plan.repeat {
        for load in &plan.loads {
            let mut add = |system: System, measured: Measured| {
                let of = Load::of(load);
                let known = rows.iter_mut().find(|row| row.load == of && row.system == system);
                match known {
                    Some(row) => row.runs.push(measured),
                    None => rows.push(Row { load: of, system, runs: vec![measured] }),
                }
            };
            eprintln!("\nround {round} of {}, {}: iroh-raft", plan.repeat, Load::of(load));
            let report = quick::trial(load, stop)?.report;
            is_good &= report.is_clean();
            add(ours(), Measured::of(&report));
            for (rival, source) in &plan.rivals {
                eprintln!("\nround {round} of {}, {}: {}", plan.repeat, Load::of(load), rival.name());
                match measure(*rival, source, load, stop) {
                    Ok((system, measured)) => add(system, measured),
                    Err(RivalError::Load(QuickError::Interrupted)) => return Err(QuickError::Interrupted),
                    // The figures of the others are worth having.
                    Err(error) => {
                        eprintln!("{}: {error}", rival.name());
                        is_good = false;
                        let name = format!("{}, {}, round {round}", rival.name(), Load::of(load));
                        left_out.push(LeftOut { name, reason: error.to_string() });
                    }
                }
            }
        }
    }
    let outcome = outcome(plan, rows, left_out)?;
    println!("{}", outcome.table());
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(&outcome).expect("an outcome serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    if let Some(path) = &plan.svg {
        let text = picture::draw(&outcome);
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    Ok(is_good)
}

fn ours() -> System {
    System {
        name: "iroh-raft".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        promise: PROMISE.to_owned(),
    }
}

fn outcome(plan: &VersusPlan, mut rows: Vec<Row>, left_out: Vec<LeftOut>) -> Result<Outcome, QuickError> {
    // A rival that failed in the first round comes later than its place.
    let place = |row: &Row| plan.loads.iter().position(|load| Load::of(load) == row.load);
    rows.sort_by_key(place);
    let folder = Folder::open(None)?;
    let base = &plan.loads[0];
    Ok(Outcome {
        rows,
        left_out,
        groups: base.cluster.groups,
        rate_per_s: base.load.per_s,
        duration_s: base.load.duration.as_secs_f64(),
        warmup_s: base.load.warmup.as_secs_f64(),
        machine: Machine::look(folder.path()),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Command};

    fn plan(args: &[&str], installed: &[&str]) -> Result<VersusPlan, String> {
        let args = ["loadgen", "versus"].iter().chain(args);
        let find = |name: &str| installed.contains(&name).then(|| PathBuf::from("/bin").join(name));
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Versus(args) => args.plan_with(find),
            _ => unreachable!("versus was asked for"),
        }
    }

    #[test]
    fn what_is_not_installed_is_named_with_how_to_install_it() {
        let plan = plan(&["--repeat", "3"], &["nats-server"]).unwrap();
        assert_eq!(plan.rivals, [(Rival::Nats, Source::Program("/bin/nats-server".into()))]);
        assert_eq!(plan.left_out.len(), 1);
        assert!(plan.left_out[0].reason.contains("apt-get install etcd-server"), "{:?}", plan.left_out);
        // The runs of one system are counted here, not by each of its loads.
        assert_eq!((plan.repeat, plan.loads.len(), plan.loads[0].repeat), (3, 1, 1));
    }

    #[test]
    fn servers_that_run_need_no_program() {
        let args = ["--etcd", "http://a:1,http://b:2", "--rivals", "etcd"];
        let plan = plan(&args, &[]).unwrap();
        let urls = ["http://a:1", "http://b:2"].map(str::to_owned);
        assert_eq!(plan.rivals, [(Rival::Etcd, Source::Running(urls.to_vec()))]);
        assert!(plan.left_out.is_empty());
    }

    #[test]
    fn loads_replace_the_flags_and_share_the_rest() {
        let args = ["--load", "64x8x256", "--load", "1024x1x1", "--groups", "4", "--duration", "3s"];
        let plan = plan(&args, &["etcd", "nats-server"]).unwrap();
        let loads: Vec<String> = plan.loads.iter().map(|load| Load::of(load).to_string()).collect();
        assert_eq!(loads, ["64 B, 8 x 256", "1024 B, 1 x 1"]);
        assert!(plan.loads.iter().all(|load| load.cluster.groups == 4 && load.load.duration.as_secs() == 3));
        assert_eq!(plan.rivals.len(), 2);
    }

    #[test]
    fn what_rivals_cannot_do_is_refused_with_a_reason() {
        let refused = |args: &[&str]| plan(args, &["etcd", "nats-server"]).unwrap_err();
        assert!(refused(&["--nodes", "5"]).contains("clusters of three"));
        assert!(refused(&["--client-threads", "2"]).contains("one thread"));
        assert!(refused(&["--fault", "kill@1s"]).contains("no faults"));
        assert!(refused(&["--html", "x"]).contains("--svg"));
        assert!(refused(&["--rivals", "etcd", "--nats", "nats://a:1"]).contains("leaves it out"));
        assert!(refused(&["--rivals", "etcd,etcd"]).contains("twice"));
        assert!(refused(&["--rivals", "kafka"]).contains("possible values: etcd, nats"));
        assert!(refused(&["--load", "64"]).contains("64x8x256"));
        assert!(refused(&["--duration", "0s"]).contains("measures nothing"));
    }
}
