//! Simulates whole clusters with faults, each run from a seed, and checks what Raft and this project promise.
//!
//! tests/sim/README.md says what is simulated, what is checked, and how a failure is replayed.

#[cfg(madsim)]
mod args;
#[cfg(madsim)]
mod bank;
#[cfg(madsim)]
mod checkers;
#[cfg(madsim)]
mod clients;
#[cfg(madsim)]
mod clock;
#[cfg(madsim)]
mod consumers;
#[cfg(madsim)]
mod finale;
#[cfg(madsim)]
mod machine;
#[cfg(madsim)]
mod marks;
#[cfg(madsim)]
mod nemesis;
#[cfg(madsim)]
mod network;
#[cfg(madsim)]
mod node;
#[cfg(madsim)]
mod operator;
#[cfg(madsim)]
mod placing;
#[cfg(madsim)]
mod plan;
#[cfg(madsim)]
mod recover;
#[cfg(madsim)]
mod sessions;
#[cfg(madsim)]
mod shrink;
#[cfg(madsim)]
mod sim;
#[cfg(madsim)]
mod tasks;
#[cfg(madsim)]
mod usurp;

#[cfg(madsim)]
fn main() -> std::process::ExitCode {
    args::run()
}

#[cfg(not(madsim))]
fn main() -> std::process::ExitCode {
    eprintln!("this build simulates nothing: run `cargo xtask sim --seeds 100`");
    std::process::ExitCode::from(2)
}
