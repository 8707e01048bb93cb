//! Running a node.

use std::path::Path;
use std::process::ExitCode;

use iroh_raft::{Engine, RaftCluster};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::StartArgs;
use crate::config::Sources;
use crate::config::settings::NodeConfig;
#[cfg(feature = "metrics-page")]
use crate::metrics_page::{Page, Serving};
use crate::say::Failure;
use iroh_raft::net::cluster_file::ClusterFile;

/// `iroh-raft start`.
pub(crate) fn run(args: &StartArgs) -> Result<ExitCode, Failure> {
    let config = Sources::new(args.config.clone(), args.settings.clone()).explain()?.finish()?;
    log(&config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::io("cannot start a runtime"))?.block_on(serve(config))
}

fn log(config: &NodeConfig) {
    let logger = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&config.log_filter))
        .with_writer(std::io::stderr);
    match config.log_format {
        "json" => logger.json().init(),
        _ => logger.with_ansi(false).init(),
    }
}

async fn serve(config: NodeConfig) -> Result<ExitCode, Failure> {
    // Before the engine: an address that is taken is said at once, and what storage counts is counted from its start.
    #[cfg(feature = "metrics-page")]
    let page = Page::bind(&config).await?;
    let NodeConfig { engine, cluster, cluster_file, stop_deadline, .. } = config;
    // Before the node is up: a signal that comes meanwhile ends it in order, too.
    let on = |kind| signal(kind).map_err(Failure::io("cannot wait for signals"));
    let (mut term, mut int, mut hup) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    let node = engine.node;
    let raft = RaftCluster::builder().tune(|settings| *settings = engine).build().await?;
    let engine = raft.engine().clone();
    println!("node {node} of {cluster} serves on {} as {}", engine.local_addr(), engine.endpoint_id());
    #[cfg(feature = "metrics-page")]
    let serving = page.map(|page| {
        println!("metrics and health at http://{}", page.address());
        page.serve(engine.clone())
    });
    let failure = loop {
        tokio::select! {
            _ = term.recv() => break None,
            _ = int.recv() => break None,
            failure = engine.failed() => break Some(failure),
            more = reload(&mut hup, &engine, &cluster_file) => more,
        }
    };
    tracing::info!(%node, "stopping: handing over, writing what is open");
    #[cfg(feature = "metrics-page")]
    serving.iter().for_each(Serving::drain);
    let stopped = engine.shutdown(stop_deadline).await;
    if let Some(failure) = failure {
        return Err(Failure::Refused(failure.to_string()));
    }
    stopped?;
    println!("node {node} has stopped");
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGHUP, and makes known what nodes are new in the cluster file.
async fn reload(hup: &mut Signal, engine: &Engine, path: &Path) {
    hup.recv().await;
    let nodes = match ClusterFile::read(path) {
        Ok(file) => file.nodes,
        Err(error) => return tracing::error!(%error, "the cluster file is not taken"),
    };
    for address in nodes.into_iter().filter(|address| address.node != engine.node()) {
        match engine.add_node(address) {
            Ok(()) => tracing::info!(node = %address.node, at = %address.addr, "node is known"),
            Err(error) => tracing::error!(node = %address.node, %error, "node is not taken"),
        }
    }
}
