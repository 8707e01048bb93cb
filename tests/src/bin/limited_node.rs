//! Starts a node under a limit of the machine and prints what the engine says about it.
//!
//! `limited_node memlock|io-uring FOLDER`
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;

use iroh_raft::prelude::*;
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Denies what a container's default profile denies.
fn deny_io_uring() -> Result<(), Box<dyn Error>> {
    let denied = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let filter = SeccompFilter::new(
        denied.into_iter().map(|call| (call, Vec::new())).collect::<BTreeMap<_, _>>(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [limit, folder] = arguments.as_slice() else {
        return Err("limited_node memlock|io-uring FOLDER".into());
    };
    match limit.as_str() {
        "memlock" => {
            setrlimit(Resource::Memlock, Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) })?;
        }
        "io-uring" => deny_io_uring()?,
        other => return Err(format!("unknown limit {other}").into()),
    }
    match RaftCluster::builder().node_id(1).preset(Preset::Testing).data_dir(folder).build().await {
        Ok(_) => println!("started"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
