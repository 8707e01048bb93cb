//! openraft at the work of its own minimal benchmark: three members in one process, function calls for a network, a
//! log in memory, empty requests and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::{AnyError, Config, EntryPayload, OptionalSend, Raft, RaftLogReader, RaftSnapshotBuilder};
use tokio::runtime::{Builder, Runtime};

/// Why openraft did not run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

const MEMBERS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause before a new leader is tried again.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nothing;

impl std::fmt::Display for Nothing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("nothing")
    }
}

openraft::declare_raft_types!(pub Types: D = Nothing, R = Nothing, Node = ());

type Member = Raft<Types, Machine>;

/// A cluster on a runtime of its own.
pub struct Openraft {
    servers: Runtime,
    clients: Runtime,
    leader: Member,
    switch: Switch,
}

impl Openraft {
    /// Starts it and waits for a leader. As many threads for the members as there are CPUs, one for the clients: as the
    /// benchmark of openraft has it, for this machine.
    pub fn start() -> Result<Openraft, Failure> {
        let cpus = std::thread::available_parallelism()?.get();
        let servers = Builder::new_multi_thread().worker_threads(cpus).enable_all().build()?;
        let clients = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = Config {
            election_timeout_min: 200,
            election_timeout_max: 2000,
            purge_batch_size: 1024,
            max_payload_entries: 1024,
            ..Config::default()
        };
        let config = Arc::new(config.validate()?);
        let switch = Switch::default();
        let leader = servers.block_on(async {
            let ids: BTreeSet<u64> = (0..MEMBERS).collect();
            for id in &ids {
                let (log, machine) = (Log::default(), Machine::default());
                let member = Raft::new(*id, config.clone(), switch.clone(), log, machine).await?;
                lock(&switch.members).insert(*id, member);
            }
            let first = switch.member(0);
            first.initialize(ids).await?;
            first.wait(Some(DEADLINE)).current_leader(0, "a leader").await?;
            // On a busy machine a member could wait longer than its election timeout, and the clients have no other leader.
            for member in lock(&switch.members).values() {
                member.runtime_config().elect(false);
            }
            // It refuses writes until a quorum has answered it for the first time.
            let until = Instant::now() + DEADLINE;
            while let Err(error) = first.client_write(Nothing).await {
                if Instant::now() >= until {
                    return Err(error.into());
                }
                tokio::time::sleep(LOOK).await;
            }
            Ok::<_, Failure>(first)
        })?;
        Ok(Openraft { servers, clients, leader, switch })
    }

    /// Has `count` requests of `clients` answered; the time that took.
    pub fn run(&self, clients: u64, count: u64) -> Result<Duration, Failure> {
        let began = Instant::now();
        self.clients.block_on(async {
            let client = |_| {
                let leader = self.leader.clone();
                tokio::spawn(async move {
                    for _ in 0..count / clients {
                        leader.client_write(Nothing).await?;
                    }
                    Ok::<(), Failure>(())
                })
            };
            let clients: Vec<_> = (0..clients).map(client).collect();
            for client in clients {
                client.await??;
            }
            Ok::<(), Failure>(())
        })?;
        Ok(began.elapsed())
    }

    /// Ends all members.
    pub fn stop(self) -> Result<(), Failure> {
        let members: Vec<Member> = lock(&self.switch.members).values().cloned().collect();
        for member in members {
            self.servers.block_on(member.shutdown())?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who is called for whom.
#[derive(Clone, Default)]
struct Switch {
    members: Arc<Mutex<BTreeMap<u64, Member>>>,
}

impl Switch {
    fn member(&self, id: u64) -> Member {
        lock(&self.members)[&id].clone()
    }
}

impl RaftNetworkFactory<Types> for Switch {
    type Network = Wire;

    async fn new_client(&mut self, target: u64, _node: &()) -> Wire {
        Wire { to: self.member(target) }
    }
}

struct Wire {
    to: Member,
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable<Types> {
    Unreachable::new(error)
}

impl RaftNetworkV2<Types> for Wire {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.to.append_entries(request).await.map_err(|error| unreachable(&error).into())
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.to.vote(request).await.map_err(|error| unreachable(&error).into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: VoteOf<Types>,
        _snapshot: SnapshotOf<Types, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(unreachable(&AnyError::error("no snapshot is ever needed here")).into())
    }
}

#[derive(Clone, Default)]
struct Log {
    state: Arc<Mutex<LogData>>,
}

#[derive(Default)]
struct LogData {
    vote: Option<VoteOf<Types>>,
    entries: BTreeMap<u64, EntryOf<Types>>,
    purged: Option<LogIdOf<Types>>,
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: B,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        Ok(lock(&self.state).entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(lock(&self.state).vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = lock(&self.state);
        let last = state.entries.values().next_back().map(RaftEntry::log_id).or(state.purged);
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        lock(&self.state).vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        lock(&self.state).entries.extend(entries.into_iter().map(|entry| (entry.index(), entry)));
        done.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        lock(&self.state).entries.split_off(&from);
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        let mut state = lock(&self.state);
        state.entries = state.entries.split_off(&(upto.index + 1));
        state.purged = Some(upto);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Machine {
    applied: Arc<Mutex<Applied>>,
}

#[derive(Default)]
struct Applied {
    last: Option<LogIdOf<Types>>,
    members: StoredMembershipOf<Types>,
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Machine;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let applied = lock(&self.applied);
        Ok((applied.last, applied.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, answer)) = entries.try_next().await? {
            let mut applied = lock(&self.applied);
            applied.last = Some(entry.log_id);
            if let EntryPayload::Membership(members) = &entry.payload {
                applied.members = StoredMembershipOf::<Types>::new(Some(entry.log_id), members.clone());
            }
            drop(applied);
            if let Some(answer) = answer {
                answer.send(Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMetaOf<Types>, _state: ()) -> Result<(), io::Error> {
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, ()>>, io::Error> {
        Ok(None)
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, ()>, io::Error> {
        let applied = lock(&self.applied);
        let meta =
            SnapshotMetaOf::<Types> { last_log_id: applied.last, last_membership: applied.members.clone() };
        Ok(SnapshotOf::<Types, ()> { meta, snapshot: () })
    }
}
