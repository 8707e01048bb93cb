//! The command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::shape::Shape;

/// A node of iroh-raft, and the commands to set a cluster up, use it and look after it.
#[derive(Parser)]
#[command(name = "iroh-raft", version)]
pub(crate) struct Cli {
    /// Results as JSON, one object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How a command gets at a cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Access {
    /// File that says who belongs to the cluster.
    #[arg(long, global = true, default_value = "cluster")]
    pub(crate) cluster_file: PathBuf,
    /// Key of this client, which the nodes must know.
    #[arg(long, global = true, default_value = "client.key")]
    pub(crate) key: PathBuf,
    /// How long a command may take, such as 500ms or 10s.
    #[arg(long, global = true, default_value = "10s", value_parser = deadline)]
    pub(crate) deadline: Duration,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Sets up a node: its key, its data folder and its file, and a line in the cluster file.
    Init(InitArgs),
    /// Makes a key for a client, and puts a line into the cluster file: nodes know it once they start, or start again.
    ClientKey(ClientKeyArgs),
    /// Runs a node until SIGTERM or SIGINT; SIGHUP reads the cluster file again.
    Start(StartArgs),
    /// A cluster on this machine in one command, to try things out: it ends with Ctrl-C.
    Dev(DevArgs),
    /// Looks at this machine with a node's file in mind: what is right, what is not, what that costs and how to mend it; ends
    /// with status 1 if something is bad.
    Doctor(DoctorArgs),
    /// Proposes settings for this machine and a workload, as a diff of a node's file, with the reason for each line. Changes nothing
    /// unless told to.
    Tune(TuneArgs),
    /// What a node is told.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// How nodes and groups stand; ends with status 1 if a node cannot be reached, or a group has no leader.
    Status {
        /// Only this group, with all its replicas.
        group: Option<u64>,
    },
    /// Groups.
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Members of a group.
    Member {
        #[command(subcommand)]
        command: MemberCommand,
    },
    /// Leadership of a group.
    Leader {
        #[command(subcommand)]
        command: LeaderCommand,
    },
    /// Appends records: those given, or each line of the standard input.
    Append(AppendArgs),
    /// Prints committed records.
    Read(ReadArgs),
    /// Follows the records of a group as they are committed, until Ctrl-C.
    Tail(TailArgs),
    /// The log of a group.
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
    /// Reads and verifies everything in the folder of a node that does not run; ends with status 1 if anything is damaged.
    Check {
        /// The data folder.
        folder: PathBuf,
    },
    /// Prints a group's log from the folder of a node that does not run: a line for each entry, and one for each of its records.
    Dump {
        /// The data folder.
        folder: PathBuf,
        /// The group.
        #[arg(long)]
        group: u64,
        /// First index to print.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Last index to print; default: the last one there is.
        #[arg(long)]
        to: Option<u64>,
    },
    /// Prints a script that completes this command line in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
pub(crate) struct InitArgs {
    /// Number of the node, from 1, of no other node of the cluster.
    #[arg(long)]
    pub(crate) node: u64,
    /// Folder for the node's file, key and data; created if it is not there.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// UDP address of the node, as the others reach it.
    #[arg(long)]
    pub(crate) address: SocketAddr,
    /// Name of the cluster; needed for its first node only.
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// production, development or testing.
    #[arg(long, default_value = "production")]
    pub(crate) preset: String,
    /// A setting for the node's file, as KEY=VALUE; may be given several times.
    #[arg(long = "set", value_parser = key_value)]
    pub(crate) settings: Vec<(String, String)>,
    /// File that says who belongs to the cluster.
    #[arg(from_global)]
    pub(crate) cluster_file: PathBuf,
}

#[derive(Args)]
pub(crate) struct ClientKeyArgs {
    /// Name of the client, for people.
    #[arg(long, default_value = "operator")]
    pub(crate) name: String,
    /// What it may do.
    #[arg(long, default_value = "append+read+manage")]
    pub(crate) rights: String,
}

#[derive(Args, Clone)]
pub(crate) struct StartArgs {
    /// The node's file.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// A setting that wins over the file and the environment, as KEY=VALUE; may be given several times.
    #[arg(long = "set", value_parser = key_value)]
    pub(crate) settings: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) node: StartArgs,
    /// Measures disk and loopback as well, for some ten seconds, and which backend serves the disk better: that is kept in the data
    /// folder, and the node uses it from its next start on. Not while the node runs.
    #[arg(long)]
    pub(crate) bench: bool,
    /// Where `proc` and `sys` are: a copy of another machine's, say.
    #[arg(long, default_value = "/", hide = true)]
    pub(crate) root: PathBuf,
}

#[derive(Args)]
pub(crate) struct TuneArgs {
    /// The node's file.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// What the cluster is for.
    #[arg(long, default_value = "throughput")]
    pub(crate) workload: Workload,
    /// Writes the proposal into the node's file; all else in it stays.
    #[arg(long)]
    pub(crate) apply: bool,
    /// Measures clusters of three nodes on this machine with the settings as they are and as they are proposed, in turns, under
    /// `loadgen run`, and compares: some minutes. What names CPUs is left out.
    #[arg(long = "try")]
    pub(crate) try_it: bool,
    /// Runs with each; fewer than four say little.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100), requires = "try_it")]
    pub(crate) runs: u32,
    /// Time that each run measures.
    #[arg(long, default_value = "10s", value_parser = deadline, requires = "try_it")]
    pub(crate) duration: Duration,
}

/// What a cluster is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Many small records, many at a time.
    Throughput,
    /// Few records at a time, each as soon as can be.
    Latency,
    /// Records of many KiB.
    LargeRecords,
    /// Hundreds of groups or more.
    ManyGroups,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Workload::Throughput => "throughput",
            Workload::Latency => "latency",
            Workload::LargeRecords => "large-records",
            Workload::ManyGroups => "many-groups",
        })
    }
}

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Nodes, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// Folder for everything; it stays, and the next `dev` goes on with it.
    #[arg(long, default_value = "iroh-raft-dev")]
    pub(crate) dir: PathBuf,
    /// UDP port of the first node; the others have the next ones.
    #[arg(long, default_value_t = 4701)]
    pub(crate) port: u16,
    /// Groups.
    #[arg(long, default_value_t = 4)]
    pub(crate) groups: u64,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Shows every setting as it holds, and where it comes from.
    Explain(StartArgs),
    /// Checks everything without starting; says all that is wrong, a line each.
    Check(StartArgs),
    /// Prints the page of reference.
    Reference,
    /// Prints the reference of the metrics and of the health page.
    #[cfg(feature = "metrics-page")]
    Metrics,
}

#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// Begins a group that has never been.
    Create {
        /// Its number, never used before.
        group: u64,
        /// Its voters; default: all nodes of the cluster file.
        #[arg(long, value_delimiter = ',')]
        voters: Vec<u64>,
    },
    /// Removes a group for good, with all its records, everywhere.
    Remove {
        /// The group.
        group: u64,
        /// Needed: its records are gone.
        #[arg(long)]
        yes: bool,
    },
    /// The groups of the cluster.
    List,
    /// A group with all its replicas.
    Describe {
        /// The group.
        group: u64,
    },
}

#[derive(Subcommand)]
pub(crate) enum MemberCommand {
    /// Adds a node's replica as a learner: it gets the log, and does not vote.
    Add(MemberArgs),
    /// Lets a learner that has caught up vote.
    Promote(MemberArgs),
    /// Takes a node's replica out.
    Remove(MemberArgs),
}

#[derive(Args)]
pub(crate) struct MemberArgs {
    /// The group.
    pub(crate) group: u64,
    /// The node.
    pub(crate) node: u64,
}

#[derive(Subcommand)]
pub(crate) enum LeaderCommand {
    /// Hands leadership of a group over.
    Transfer {
        /// The group.
        group: u64,
        /// To which node; default: the best one.
        #[arg(long)]
        to: Option<u64>,
    },
}

#[derive(Args)]
pub(crate) struct AppendArgs {
    /// The group.
    pub(crate) group: u64,
    /// Records; without any, the lines of the standard input.
    pub(crate) records: Vec<String>,
}

#[derive(Args)]
pub(crate) struct ReadArgs {
    /// The group.
    pub(crate) group: u64,
    /// First record.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Records at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
    /// Node to read from, as far as it has come; default: the one that leads.
    #[arg(long)]
    pub(crate) node: Option<u64>,
}

#[derive(Args)]
pub(crate) struct TailArgs {
    /// The group.
    pub(crate) group: u64,
    /// First record; default: what comes from now on.
    #[arg(long)]
    pub(crate) from: Option<u64>,
    /// Ends after so many records.
    #[arg(long)]
    pub(crate) count: Option<u64>,
}

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Where the log begins and ends on each replica.
    Info {
        /// The group.
        group: u64,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE, such as shards.count=2")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn deadline(text: &str) -> Result<Duration, String> {
    Shape::Time { min: Duration::from_millis(1) }.time(text)
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "iroh-raft", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
