//! A cluster on this machine in one command.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::DevArgs;
use crate::local::{Folder, Nodes};
use crate::say::Failure;

/// How often it is looked whether a node has ended.
const LOOK: Duration = Duration::from_millis(200);

/// `iroh-raft dev`.
pub(crate) fn run(args: &DevArgs) -> Result<ExitCode, Failure> {
    let folder = Folder::new(&args.dir);
    let groups = ("groups.count".to_owned(), args.groups.to_string());
    folder.set_up(("dev", "development"), &addresses(args)?, &[groups])?;
    let mut nodes = folder.start(args.nodes, false)?;
    println!(
        "in another terminal:\n  export IROH_RAFT=\"--cluster-file {} --key {}\"\n  iroh-raft $IROH_RAFT status\n  \
         iroh-raft $IROH_RAFT append 1 hello\n  iroh-raft $IROH_RAFT tail 1 --from 0\nCtrl-C ends it; everything stays in {}",
        folder.cluster_file().display(),
        folder.key().display(),
        args.dir.display()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Failure::io("cannot start a runtime"))?.block_on(watch(&mut nodes));
    for (node, status) in nodes.end()? {
        println!("node {node} ended: {status}");
    }
    match ended? {
        Some(node) => Err(Failure::Refused(format!("node {node} ended by itself: it says why above"))),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn addresses(args: &DevArgs) -> Result<Vec<SocketAddr>, Failure> {
    let address = |at: u64| {
        let port = u16::try_from(at).ok().and_then(|at| args.port.checked_add(at));
        let port = port.ok_or_else(|| {
            Failure::Refused(format!("--port {}: too high for {} nodes", args.port, args.nodes))
        })?;
        Ok(([127, 0, 0, 1], port).into())
    };
    (0..args.nodes).map(address).collect()
}

/// Waits for Ctrl-C, or for a node that ends by itself.
async fn watch(nodes: &mut Nodes) -> Result<Option<u64>, Failure> {
    let on = |kind| signal(kind).map_err(Failure::io("cannot wait for signals"));
    let (mut int, mut term) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = int.recv() => return Ok(None),
            _ = term.recv() => return Ok(None),
            _ = looks.tick() => {
                if let Some(node) = nodes.ended() {
                    return Ok(Some(node));
                }
            }
        }
    }
}
