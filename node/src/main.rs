//! The node as a program. So far: `check` verifies the data folder of a node that does not run, `dump`
//! prints a log from it.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use iroh_raft_core::{GroupId, Index};
use iroh_raft_storage::{OfflineFolder, check, dump};

/// A node of iroh-raft, and what looks after its data folder.
#[derive(Parser)]
#[command(name = "iroh-raft-node", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(is_sound) => ExitCode::from(u8::from(!is_sound)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool, Box<dyn std::error::Error>> {
    match command {
        Command::Check { folder } => {
            let report = check(folder)?;
            println!("{report}");
            Ok(report.is_sound())
        }
        Command::Dump { folder, group, from, to } => {
            let folder = OfflineFolder::open(folder)?;
            let group = GroupId(group);
            let shard = folder.open_shard(folder.identity().placement.shard_of(group))?;
            let mut out = BufWriter::new(std::io::stdout().lock());
            dump(&shard, group, Index(from), Index(to.unwrap_or(u64::MAX)), &mut out)?;
            out.flush()?;
            Ok(true)
        }
    }
}
