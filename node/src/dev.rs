//! A cluster on this machine in one command.

use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Access, ClientKeyArgs, DevArgs, InitArgs};
use crate::init::{self, NODE_FILE};
use crate::say::Failure;

/// How often it is looked whether a node has ended.
const LOOK: Duration = Duration::from_millis(200);

/// `iroh-raft dev`.
pub(crate) fn run(args: &DevArgs) -> Result<ExitCode, Failure> {
    let (cluster_file, key) = (args.dir.join("cluster"), args.dir.join("client.key"));
    std::fs::create_dir_all(&args.dir)
        .map_err(Failure::io(format!("{} cannot be made", args.dir.display())))?;
    for node in 1..=args.nodes {
        set_up(args, node, &cluster_file)?;
    }
    if !key.exists() {
        let client = ClientKeyArgs { name: "operator".into(), rights: "append+read+manage".into() };
        let access = Access {
            cluster_file: cluster_file.clone(),
            key: key.clone(),
            deadline: Duration::from_secs(10),
        };
        init::client(&client, &access, true)?;
    }
    let mut nodes = Vec::new();
    for node in 1..=args.nodes {
        nodes.push((node, start(&folder(&args.dir, node))?));
    }
    println!(
        "in another terminal:\n  export IROH_RAFT=\"--cluster-file {} --key {}\"\n  iroh-raft $IROH_RAFT status\n  \
         iroh-raft $IROH_RAFT append 1 hello\n  iroh-raft $IROH_RAFT tail 1 --from 0\nCtrl-C ends it; everything stays in {}",
        cluster_file.display(),
        key.display(),
        args.dir.display()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Failure::io("cannot start a runtime"))?.block_on(watch(&mut nodes));
    let is_asked = matches!(ended, Ok(None));
    for (_, child) in &mut nodes {
        // Ctrl-C has told them as well: once more does no harm.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(pid)) = (child.try_wait(), pid) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    for (node, child) in &mut nodes {
        let status = child.wait().map_err(Failure::io(format!("node {node} is lost")))?;
        println!("node {node} ended: {status}");
    }
    match ended? {
        Some(node) => Err(Failure::Refused(format!("node {node} ended by itself: it says why above"))),
        None => Ok(if is_asked { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

fn folder(dir: &Path, node: u64) -> std::path::PathBuf {
    dir.join(format!("node-{node}"))
}

fn set_up(args: &DevArgs, node: u64, cluster_file: &Path) -> Result<(), Failure> {
    let dir = folder(&args.dir, node);
    if dir.join(NODE_FILE).exists() {
        return Ok(());
    }
    let port = u16::try_from(node - 1).ok().and_then(|at| args.port.checked_add(at));
    let port = port.ok_or_else(|| {
        Failure::Refused(format!("--port {}: too high for {} nodes", args.port, args.nodes))
    })?;
    init::set_up(&InitArgs {
        node,
        dir,
        address: ([127, 0, 0, 1], port).into(),
        cluster: Some("dev".to_owned()),
        preset: "development".to_owned(),
        settings: vec![("groups.count".to_owned(), args.groups.to_string())],
        cluster_file: cluster_file.to_path_buf(),
    })?;
    Ok(())
}

fn start(dir: &Path) -> Result<Child, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("this program's own file is not found"))?;
    let mut command = Command::new(own);
    command.arg("start").arg("--config").arg(dir.join(NODE_FILE));
    command.spawn().map_err(Failure::io("a node cannot be started"))
}

/// Waits for Ctrl-C, or for a node that ends by itself.
async fn watch(nodes: &mut [(u64, Child)]) -> Result<Option<u64>, Failure> {
    let on = |kind| signal(kind).map_err(Failure::io("cannot wait for signals"));
    let (mut int, mut term) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = int.recv() => return Ok(None),
            _ = term.recv() => return Ok(None),
            _ = looks.tick() => {
                for (node, child) in &mut *nodes {
                    if !matches!(child.try_wait(), Ok(None)) {
                        return Ok(Some(*node));
                    }
                }
            }
        }
    }
}
