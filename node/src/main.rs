//! `iroh-raft`: a node of a cluster, and the commands to set one up, use it and look after it.

use std::process::ExitCode;

use clap::Parser;

#[macro_use]
mod say;

mod cli;
mod cluster;
mod config;
mod dev;
mod doctor;
mod folder;
mod groups;
mod init;
mod local;
#[cfg(feature = "metrics-page")]
mod metrics_page;
mod records;
mod start;
mod status;
mod trial;
mod tune;

use cli::{Cli, Command};
use say::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { json, access, command } = cli;
    match command {
        Command::Init(args) => init::node(&args, json),
        Command::ClientKey(args) => init::client(&args, &access, json),
        Command::Start(args) => start::run(&args),
        Command::Dev(args) => dev::run(&args),
        Command::Doctor(args) => doctor::run(&args, &access, json),
        Command::Tune(args) => tune::run(&args, json),
        Command::Config { command } => init::config(&command, json),
        Command::Status { group } => status::run(&access, group, json),
        Command::Group { command } => groups::group(&access, &command, json),
        Command::Member { command } => groups::member(&access, &command, json),
        Command::Leader { command } => groups::leader(&access, &command, json),
        Command::Append(args) => records::append(&access, &args, json),
        Command::Read(args) => records::read(&access, &args, json),
        Command::Tail(args) => records::tail(&access, &args, json),
        Command::Log { command } => status::log(&access, &command, json),
        Command::Check { folder } => folder::check(&folder),
        Command::Dump { folder, group, from, to } => folder::dump(&folder, group, from, to),
        Command::Completions { shell } => {
            cli::completions(shell);
            Ok(ExitCode::SUCCESS)
        }
    }
}
