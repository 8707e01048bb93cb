//! A cluster of three engines in this process, encrypted QUIC between them: one append after the other by the process that leads,
//! of one record and of a block of 1,024. Beside each the limit, a bare append of the same bytes to a file with fdatasync.
//!
//! An append is three such flushes, two of them after a way over the network; all three nodes share this machine's cores and disk.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft::storage::{BackendChoice, BackendKind};
use iroh_raft::{
    Engine, GroupId, Identity, Pinning, Preset, RaftCluster, RecordBlock, RequestError, Retention, Role,
};
use iroh_raft_bench::bare::{Bare, BareKind};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const NODES: u64 = 3;
const GROUP: u64 = 1;
const RECORD_BYTES: usize = 64;
/// What is older goes, so that a long run does not fill the disk.
const RETENTION_BYTES: u64 = 64 << 20;
/// For a leader to be there, and for an append to be answered.
const DEADLINE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// Three nodes, of which one leads.
struct Cluster {
    runtime: Runtime,
    nodes: Vec<RaftCluster>,
    leader: Engine,
    _folder: TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let folder = folder();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let key = |node: u64| folder.path().join(format!("key-{node}"));
        // All at once, so that no port is given twice.
        let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let sockets: Vec<UdpSocket> = (0..NODES).map(bind).collect();
        let addr = |socket: &UdpSocket| socket.local_addr().expect("an address");
        let addresses: Vec<SocketAddr> = sockets.iter().map(addr).collect();
        drop(sockets);
        let identity = |node| Identity::load_or_create(key(node)).expect("a key").endpoint_id();
        let peers: Vec<_> = (1..=NODES).map(|node| (node, identity(node))).zip(addresses).collect();
        let start = |own: u64| {
            let mut builder = RaftCluster::builder()
                .node_id(own)
                .cluster("bench")
                .preset(Preset::Production)
                .pinning(Pinning::Unpinned)
                .groups(1)
                .retention(GROUP, Retention { bytes_max: Some(RETENTION_BYTES), ..Retention::default() })
                .data_dir(folder.path().join(format!("node-{own}")))
                .key_file(key(own))
                // As the bare file, and without a calibration before.
                .tune(|config| config.backend = BackendChoice::Fixed(BackendKind::Buffered));
            for &((node, endpoint), addr) in &peers {
                builder = match node == own {
                    true => builder.bind_address(addr),
                    false => builder.peer(node, endpoint, addr),
                };
            }
            runtime.block_on(builder.build()).expect("a node")
        };
        let nodes: Vec<RaftCluster> = (1..=NODES).map(start).collect();
        let leader = runtime.block_on(leader(&nodes));
        Cluster { runtime, nodes, leader, _folder: folder }
    }

    /// Appends so many blocks, one after the other. Should the leader change, the way to the next one is a part of it.
    fn append(&mut self, block: &RecordBlock, count: u64) -> Duration {
        let Cluster { runtime, nodes, leader: at, .. } = self;
        runtime.block_on(async {
            let began = Instant::now();
            for _ in 0..count {
                let until = Instant::now() + DEADLINE;
                while let Err(error) = at.append_block(GroupId(GROUP), block.clone()).await {
                    assert!(Instant::now() < until, "no answer in time: {error}");
                    if matches!(error, RequestError::NotLeader { .. }) {
                        *at = leader(nodes).await;
                    }
                }
            }
            began.elapsed()
        })
    }

    fn stop(self) {
        for node in self.nodes {
            self.runtime.block_on(node.shutdown()).expect("the end of a node");
        }
    }
}

async fn leader(nodes: &[RaftCluster]) -> Engine {
    let until = Instant::now() + DEADLINE;
    loop {
        for node in nodes {
            let statuses = node.engine().statuses().await.unwrap_or_default();
            if statuses.iter().any(|status| status.role == Role::Leader) {
                return node.engine().clone();
            }
        }
        assert!(Instant::now() < until, "no leader in time");
        tokio::time::sleep(LOOK).await;
    }
}

fn end_to_end(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("end_to_end");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    // Made by the first call: a run that picks one benchmark makes nothing for the others.
    let mut cluster = None;
    for records in [1, 1024] {
        let made = vec![vec![7_u8; RECORD_BYTES]; records];
        let block = RecordBlock::from_records(&made);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(format!("{records}_records"), |bencher| {
            let cluster = cluster.get_or_insert_with(Cluster::start);
            bencher.iter_custom(|count| cluster.append(&block, count));
        });
        let mut bare = None;
        group.bench_function(format!("{records}_records_bare"), |bencher| {
            let (bare, _) = bare.get_or_insert_with(|| {
                let folder = folder();
                let bare =
                    Bare::create(&folder.path().join("bare"), BareKind::Append, block.as_bytes().len());
                (bare.expect("a file"), folder)
            });
            bencher.iter_custom(|count| (0..count).map(|_| bare.flush().expect("a flush")).sum());
        });
    }
    group.finish();
    if let Some(cluster) = cluster {
        cluster.stop();
    }
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
