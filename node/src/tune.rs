//! Settings that suit a machine and a workload, as a diff of a node's file with the reason for each line.
//!
//! The rules come from what a record costs on the threads of a node (bench/README.md): of its CPU time the bridge takes nearly half,
//! writers and movers a good third, shards a tenth to a sixth. So a shard keeps about four cores busy, of which it needs one for itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use iroh_raft::cpu;
use serde::Serialize;

use crate::cli::{TuneArgs, Workload};
use crate::config::settings::{NodeConfig, SETTINGS, find};
use crate::config::shape::show_bytes;
use crate::config::{Sources, page};
use crate::doctor::Host;
use crate::say::{Failure, say, table};

/// Cores that a shard keeps busy with all that belongs to it.
const CORES_A_SHARD: usize = 4;
/// Of the machine's memory, what all journals' caches may take together.
const CACHE_PART: u64 = 4;
const MIB: u64 = 1 << 20;

/// What the machine has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resources {
    /// CPUs of this process, one of each core first.
    pub(crate) cpus: Vec<usize>,
    /// Cores among them.
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
}

/// A setting that should be another one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Proposal {
    pub(crate) key: &'static str,
    pub(crate) now: String,
    pub(crate) proposed: String,
    pub(crate) why: String,
}

/// `iroh-raft tune`.
pub(crate) fn run(args: &TuneArgs, json: bool) -> Result<ExitCode, Failure> {
    let explained = Sources::new(args.config.clone(), Vec::new()).explain()?;
    let resources = look(&Host::new(PathBuf::from("/")))?;
    let proposals = propose(&resources, args.workload, &explained.config);
    if json {
        proposals.iter().for_each(|proposal| say(true, proposal, |_| String::new()));
    } else {
        out!("{}", text(&resources, args.workload, &proposals));
    }
    if args.apply {
        let Some(path) = &args.config else {
            return Err(Failure::Refused("--apply needs --config: the node's file that is to change".into()));
        };
        apply(path, &proposals)?;
        out!("{} has them now; start the node again", path.display());
    }
    if args.try_it {
        return try_it(args.workload, &explained.config, &proposals);
    }
    Ok(ExitCode::SUCCESS)
}

fn look(host: &Host) -> Result<Resources, Failure> {
    let allowed = cpu::allowed().map_err(|error| Failure::Refused(error.to_string()))?;
    let core_of = |cpu: &usize| {
        host.read(format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
            .unwrap_or_else(|| cpu.to_string())
    };
    let mut by_core: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for cpu in &allowed {
        by_core.entry(core_of(cpu)).or_default().push(*cpu);
    }
    let cores = by_core.len();
    let mut cpus: Vec<(usize, usize)> =
        by_core.values().flat_map(|of_core| of_core.iter().copied().enumerate()).collect();
    cpus.sort_unstable();
    let meminfo = host.read("proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(4 << 20);
    Ok(Resources { cpus: cpus.into_iter().map(|(_, cpu)| cpu).collect(), cores, memory_bytes: kib << 10 })
}

/// What should be otherwise than it is.
pub(crate) fn propose(resources: &Resources, workload: Workload, present: &NodeConfig) -> Vec<Proposal> {
    let cores = resources.cores.max(1);
    let shards = match workload {
        // Each fsync more is one that others wait for.
        Workload::Latency => 1,
        Workload::Throughput | Workload::LargeRecords | Workload::ManyGroups => {
            (cores / CORES_A_SHARD).max(1)
        }
    };
    let threads = match workload {
        Workload::Latency => 1,
        _ => (cores * 2 / 5).max(1),
    };
    let mut wanted: Vec<(&'static str, String, String)> = Vec::new();
    let mut want = |key, value: String, why: String| wanted.push((key, value, why));
    want(
        "shards.count",
        shards.to_string(),
        match workload {
            Workload::Latency => {
                "one journal: all groups share one fsync, and nobody waits for another".to_owned()
            }
            _ => format!(
                "{cores} cores; a shard keeps about {CORES_A_SHARD} busy with its writer, its mover and the bridge"
            ),
        },
    );
    want(
        "bridge.threads",
        threads.to_string(),
        match workload {
            Workload::Latency => "one thread: a frame is not handed from one to another".to_owned(),
            _ => "encryption and packets take nearly half of a node's CPU time".to_owned(),
        },
    );
    if cores > shards + threads {
        let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        want(
            "shards.pinning",
            list(&resources.cpus[..shards]),
            "a core for each shard, and none of it for others: its caches stay its own".to_owned(),
        );
        want(
            "bridge.cpus",
            list(&resources.cpus[shards..shards + threads]),
            "beside the shards, not on their cores".to_owned(),
        );
    } else {
        want(
            "shards.pinning",
            "none".to_owned(),
            format!(
                "{cores} cores for {shards} shards, {threads} bridge threads and the writers: the scheduler shares better"
            ),
        );
        want("bridge.cpus", String::new(), "as above".to_owned());
    }
    let journal =
        (resources.memory_bytes / CACHE_PART / shards as u64 * 4 / 5 / MIB * MIB).clamp(64 * MIB, 256 * MIB);
    want(
        "storage.journal_bytes",
        show_bytes(journal),
        format!("{} MiB of memory, of which a quarter may cache journals", resources.memory_bytes / MIB),
    );
    want(
        "storage.journal_cache_bytes",
        show_bytes(journal / 4 * 5),
        "the journal and a quarter: moves read from memory".to_owned(),
    );
    match workload {
        Workload::ManyGroups => {
            want(
                "storage.move_bytes",
                show_bytes(32 * MIB),
                "with many groups each move has little of each; larger ones make fewer rows".to_owned(),
            );
            want(
                "storage.log_cache_bytes",
                show_bytes(128 * MIB),
                "the last row of each group is read before the next one is written".to_owned(),
            );
        }
        Workload::LargeRecords => {
            want(
                "bridge.stream_window",
                show_bytes(MIB),
                "records of many KiB fill a small window in less than a round trip".to_owned(),
            );
        }
        Workload::Throughput | Workload::Latency => {}
    }
    let is_other = |(key, value, why): (&'static str, String, String)| {
        let now = find(key).map(|setting| (setting.field.read)(present))?;
        (now != value).then_some(Proposal { key, now, proposed: value, why })
    };
    wanted.into_iter().filter_map(is_other).collect()
}

fn text(resources: &Resources, workload: Workload, proposals: &[Proposal]) -> String {
    let head = format!(
        "{} CPUs on {} cores, {} MiB of memory; workload {workload}",
        resources.cpus.len(),
        resources.cores,
        resources.memory_bytes / MIB
    );
    if proposals.is_empty() {
        return format!("{head}\nnothing should be otherwise");
    }
    let shown = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let row = |proposal: &Proposal| {
        vec![proposal.key.to_owned(), shown(&proposal.now), shown(&proposal.proposed), proposal.why.clone()]
    };
    let rows: Vec<_> = proposals.iter().map(row).collect();
    format!(
        "{head}\n\n{}\n\n--apply writes them into the node's file, --try measures those that the load generator takes, as they are and as proposed",
        table(&["setting", "now", "proposed", "why"], &rows)
    )
}

/// Changes lines of a node's file, and nothing else in it.
fn apply(path: &Path, proposals: &[Proposal]) -> Result<(), Failure> {
    let text =
        std::fs::read_to_string(path).map_err(Failure::io(format!("{} cannot be read", path.display())))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for Proposal { key, proposed, .. } in proposals {
        let Some(setting) = find(key) else { continue };
        set_line(&mut lines, key, &page::toml_value(setting.field.shape, proposed));
    }
    let changed = lines.join("\n") + "\n";
    // Written beside it first: a node's file is whole or as it was.
    let beside = path.with_extension("toml.new");
    std::fs::write(&beside, changed)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(Failure::io(format!("{} cannot be written", path.display())))
}

/// Sets a key of a section: in place of its line, or of the comment with its default, or at the section's end.
fn set_line(lines: &mut Vec<String>, key: &str, value: &str) {
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let wanted = format!("{name} = {value}");
    let head = format!("[{section}]");
    let Some(begin) = lines.iter().position(|line| line.trim() == head) else {
        lines.extend([String::new(), head, wanted]);
        return;
    };
    let length = lines[begin + 1..].iter().position(|line| line.trim_start().starts_with('['));
    let end = length.map_or(lines.len(), |length| begin + 1 + length);
    let is_its = |line: &String| {
        let said = line.trim_start().trim_start_matches('#').trim_start();
        said.split_once('=').is_some_and(|(found, _)| found.trim() == name)
    };
    let own = |is_comment: bool| {
        (begin + 1..end)
            .find(|at| is_its(&lines[*at]) && lines[*at].trim_start().starts_with('#') == is_comment)
    };
    match own(false).or(own(true)) {
        Some(at) => lines[at] = wanted,
        None => lines.insert(end, wanted),
    }
}

/// Settings that the load generator takes, and its names for them. It has no others: its nodes share this machine, where CPUs that
/// are meant for one are not those of three, and they live too short for the sizes of journals, moves and caches to tell.
const TRIED: [(&str, &str); 3] =
    [("shards.count", "--shards"), ("bridge.threads", "--bridge-threads"), ("storage.backend", "--backend")];

/// Which of the proposed settings a trial compares, and which it does not.
fn tried(proposals: &[Proposal]) -> (Vec<&'static str>, Vec<&'static str>) {
    let keys = proposals.iter().map(|proposal| proposal.key);
    keys.partition(|key| TRIED.iter().any(|(tried, _)| tried == key))
}

/// What the load generator is told of a node's settings.
fn trial_args(config: &NodeConfig) -> Vec<String> {
    let value = |key| find(key).map(|setting| (setting.field.read)(config));
    TRIED.iter().filter_map(|(key, flag)| Some([(*flag).to_owned(), value(key)?])).flatten().collect()
}

/// Runs the load generator with the settings as they are and as they are proposed, and compares.
fn try_it(workload: Workload, present: &NodeConfig, proposals: &[Proposal]) -> Result<ExitCode, Failure> {
    let (compared, left_out) = tried(proposals);
    if !left_out.is_empty() {
        out!(
            "not tried, since the load generator does not take them: {}; their reasons are above",
            left_out.join(", ")
        );
    }
    if compared.is_empty() {
        out!("nothing to try: what the load generator takes is to stay as it is");
        return Ok(ExitCode::SUCCESS);
    }
    out!("tried: {}", compared.join(", "));
    let program = std::env::current_exe()
        .map_err(Failure::io("this program's own file is not found"))?
        .with_file_name("loadgen");
    if !program.exists() {
        let build = "cargo build --release -p iroh-raft-loadgen";
        return Err(Failure::Refused(format!("--try needs {}: build it with `{build}`", program.display())));
    }
    let mut proposed = present.clone();
    for Proposal { key, proposed: value, .. } in proposals {
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == *key) {
            (setting.field.write)(&mut proposed, value).map_err(Failure::Refused)?;
        }
    }
    let folder = tempfile::tempdir().map_err(Failure::io("no folder for results"))?;
    let mut files = Vec::new();
    for (name, config) in [("now", present), ("proposed", &proposed)] {
        let file = folder.path().join(format!("{name}.json"));
        let mut command = Command::new(&program);
        command.args(["quick", "--repeat", "4", "--json"]).arg(&file);
        command.args(trial_args(config));
        let load: &[&str] = match workload {
            Workload::Throughput => &["--in-flight", "2048"],
            Workload::LargeRecords => &["--record-bytes", "16384", "--in-flight", "64"],
            Workload::ManyGroups => &["--groups", "512", "--in-flight", "4096", "--warmup", "5s"],
            Workload::Latency => &["--clients", "1", "--in-flight", "1"],
        };
        out!(
            "==> {name}: {:?}",
            command.get_args().skip(1).chain(load.iter().map(AsRef::as_ref)).collect::<Vec<_>>()
        );
        let status = command.args(load).stdout(std::process::Stdio::null()).status();
        if !status.map_err(Failure::io("the load generator cannot be run"))?.success() {
            return Err(Failure::Refused(format!(
                "the load generator failed with the settings {name}: it says why above"
            )));
        }
        files.push(file);
    }
    // The loads differ in what is compared.
    let status = Command::new(&program).arg("compare").args(&files).arg("--any-config").status();
    let status = status.map_err(Failure::io("the load generator cannot be run"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use iroh_raft::Preset;

    use super::*;

    fn resources(cores: usize, memory_gib: u64) -> Resources {
        Resources { cpus: (0..2 * cores).collect(), cores, memory_bytes: memory_gib << 30 }
    }

    fn proposed(resources: &Resources, workload: Workload) -> (NodeConfig, Vec<Proposal>) {
        let mut config = NodeConfig::new(Preset::Production);
        let proposals = propose(resources, workload, &config);
        for proposal in &proposals {
            (find(proposal.key).unwrap().field.write)(&mut config, &proposal.proposed)
                .unwrap_or_else(|problem| panic!("{proposal:?}: {problem}"));
        }
        (config, proposals)
    }

    #[test]
    fn what_is_proposed_can_be_and_needs_no_more_than_there_is() {
        for cores in [1, 2, 4, 8, 32, 96] {
            for workload in <Workload as clap::ValueEnum>::value_variants().iter().copied() {
                let machine = resources(cores, 16);
                let (config, proposals) = proposed(&machine, workload);
                let engine = &config.engine;
                assert!(usize::from(engine.shards) <= cores, "{cores} {workload}: {proposals:?}");
                let caches = engine.storage.journal_cache_bytes as u64 * u64::from(engine.shards);
                assert!(caches <= machine.memory_bytes / 2, "{cores} {workload}: {proposals:?}");
                assert!(
                    proposals
                        .iter()
                        .all(|proposal| !proposal.why.is_empty() && proposal.now != proposal.proposed)
                );
                if let iroh_raft::Pinning::Cpus(cpus) = &engine.pinning {
                    assert!(cpus.iter().all(|cpu| !engine.bridge_cpus.contains(cpu)), "{proposals:?}");
                }
                // What is so already is not proposed.
                assert_eq!(propose(&machine, workload, &config), []);
            }
        }
        assert_eq!(proposed(&resources(32, 64), Workload::Throughput).0.engine.shards, 8);
        assert_eq!(proposed(&resources(32, 64), Workload::Latency).0.engine.shards, 1);
    }

    #[test]
    fn a_trial_says_what_it_compares_and_tells_the_load_generator_all_that_it_takes() {
        let present = NodeConfig::new(Preset::Production);
        let proposals = propose(&resources(32, 64), Workload::ManyGroups, &present);
        let (compared, left_out) = tried(&proposals);
        assert_eq!(compared, ["shards.count", "bridge.threads"]);
        assert_eq!(compared.len() + left_out.len(), proposals.len());
        for key in ["shards.pinning", "bridge.cpus", "storage.move_bytes", "storage.log_cache_bytes"] {
            assert!(left_out.contains(&key), "{key}: {left_out:?}");
        }
        let mut config = present;
        config.engine.shards = 3;
        config.engine.bridge_threads = 5;
        config.engine.backend = "direct".parse().unwrap();
        let args = trial_args(&config);
        assert_eq!(args, ["--shards", "3", "--bridge-threads", "5", "--backend", "direct"]);
    }

    #[test]
    fn lines_are_set_where_they_are_and_nothing_else_changes() {
        let text = "# top\n[shards]\n# Shards of this node.\n# count = 1\nring_items = 4096\n\n[bridge]\n# threads = 1\n";
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        set_line(&mut lines, "shards.count", "2");
        set_line(&mut lines, "shards.ring_items", "512");
        set_line(&mut lines, "bridge.cpus", "[3]");
        set_line(&mut lines, "raft.tick", "\"20ms\"");
        set_line(&mut lines, "shards.count", "4");
        let expected = "# top\n[shards]\n# Shards of this node.\ncount = 4\nring_items = 512\n\n[bridge]\n# threads = 1\ncpus = [3]\n\n[raft]\ntick = \"20ms\"";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn a_file_that_was_tuned_says_what_was_proposed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        let config = NodeConfig::new(Preset::Production);
        std::fs::write(&path, page::node_file(&config, "production", &[])).unwrap();
        let proposals = propose(&resources(8, 16), Workload::ManyGroups, &config);
        assert!(proposals.len() > 4);
        apply(&path, &proposals).unwrap();
        let sources = Sources { file: Some(path), ..Sources::default() };
        let explained = sources.explain().unwrap();
        for Proposal { key, proposed, .. } in &proposals {
            assert_eq!((find(key).unwrap().field.read)(&explained.config), *proposed, "{key}");
        }
        assert_eq!(propose(&resources(8, 16), Workload::ManyGroups, &explained.config), []);
    }
}
