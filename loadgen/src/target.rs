//! Where records go: clients on the network, in sessions or without, and in the process of a node.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, FuturesUnordered, TryStreamExt};
use futures_util::{FutureExt, StreamExt};
use iroh_raft::net::client::{
    self, Appender, Client, ClientError, Completion, Completions, Session, SessionDone,
};
use iroh_raft::{Appended, Engine, GroupId, RecordBlock};

use crate::sizes::RecordSizes;

/// Sessions that are opened or closed at a time.
const SESSIONS_AT_ONCE: usize = 64;
/// Records of one append of a session: as many as a client on the network sends together without one.
const SESSION_RECORDS_MAX: usize = 4096;
/// Bytes of these.
const SESSION_BYTES_MAX: usize = 256 << 10;
/// Pause before a session asks anew what became of its append: the client's own retries were spent, or its time.
const PAUSE: Duration = Duration::from_millis(100);
/// Time for closing them; what is open after that expires.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Where records go, and where their ends come from.
pub(crate) trait Target {
    /// Records of one append at most: more are due as several.
    fn append_records_max(&self) -> u32 {
        u32::MAX
    }

    /// Whether a client has one append under way in a group at most.
    fn is_one_at_a_time(&self) -> bool {
        false
    }

    /// Puts records of a client in line that are appended all or none.
    fn try_append(
        &mut self,
        client: u32,
        group: GroupId,
        records: &[&[u8]],
        tag: u64,
    ) -> Result<(), ClientError>;

    /// Waits for ends and adds all there are to `out`. Cancel safe.
    async fn recv(&mut self, out: &mut Vec<Completion>);
}

/// Calls that are futures, each in a box of its own.
pub(crate) type Open<T> = FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Appends that are.
pub(crate) type OpenAppends = Open<Completion>;

/// Waits until one of them has ended, and adds all that have to `out`. Cancel safe.
pub(crate) async fn recv_ended<T>(open: &mut Open<T>, out: &mut Vec<T>) {
    // Tokio gives a task a budget, and tells its futures that they are not ready once that is spent. Thousands of them
    // in one task would starve each other: with JetStream's client that cost three quarters of the rate.
    tokio::task::unconstrained(async {
        match open.next().await {
            Some(end) => out.push(end),
            None => std::future::pending().await,
        }
        while let Some(Some(end)) = open.next().now_or_never() {
            out.push(end);
        }
    })
    .await;
}

/// Clients on the network.
pub(crate) struct Networked {
    appender: Appender,
    ends: Completions,
}

impl Networked {
    pub(crate) fn new(client: &Client) -> Networked {
        let (appender, ends) = client.appender();
        Networked { appender, ends }
    }
}

impl Target for Networked {
    fn try_append(&mut self, _: u32, group: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
        self.appender.try_append_batch(group, records, tag)
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        self.ends.recv(out).await;
    }
}

/// Whose session it is, and of which group.
type Place = (u32, GroupId);

/// Clients on the network with a session in each of their groups: what is not answered is asked for until it is, and done
/// once.
pub(crate) struct InSessions {
    /// Those with nothing under way.
    idle: HashMap<Place, Session>,
    open: Open<(Completion, Place, Session)>,
    ended: Vec<(Completion, Place, Session)>,
    records_max: u32,
}

impl InSessions {
    /// Opens a session at each of these places. `ttl`: how long each may go unused.
    ///
    /// # Errors
    /// [`ClientError`]; a session refusal says which bound is in the way.
    pub(crate) async fn open(
        client: &Client,
        places: impl Iterator<Item = (u32, u32)>,
        sizes: &RecordSizes,
        ttl: Duration,
    ) -> Result<InSessions, ClientError> {
        let opening = places.map(|(number, group)| async move {
            let group = GroupId(group.into());
            client.open_session(group, ttl).await.map(|session| ((number, group), session))
        });
        let idle = stream::iter(opening).buffer_unordered(SESSIONS_AT_ONCE).try_collect().await?;
        let records_max = (SESSION_BYTES_MAX / sizes.max()).clamp(1, SESSION_RECORDS_MAX) as u32;
        Ok(InSessions { idle, open: Open::new(), ended: Vec::new(), records_max })
    }

    /// Closes those with nothing under way, so that they take no place any more.
    pub(crate) async fn close(self) {
        let closing = self.idle.into_values().map(Session::close);
        let closed = stream::iter(closing).buffer_unordered(SESSIONS_AT_ONCE).for_each(|end| async {
            // One that cannot be closed expires.
            drop(end);
        });
        _ = tokio::time::timeout(CLOSE_DEADLINE, closed).await;
    }
}

impl Target for InSessions {
    fn append_records_max(&self) -> u32 {
        self.records_max
    }

    fn is_one_at_a_time(&self) -> bool {
        true
    }

    fn try_append(
        &mut self,
        client: u32,
        group: GroupId,
        records: &[&[u8]],
        tag: u64,
    ) -> Result<(), ClientError> {
        let place = (client, group);
        let mut session = self.idle.remove(&place).expect("one append is under way in a session at a time");
        let mut bytes = BytesMut::with_capacity(records.iter().map(|record| record.len()).sum());
        records.iter().for_each(|record| bytes.extend_from_slice(record));
        let mut bytes = bytes.freeze();
        let records: Vec<Bytes> = records.iter().map(|record| bytes.split_to(record.len())).collect();
        self.open.push(Box::pin(async move {
            let mut result = session.append(&records).await;
            // Whoever has no session must leave it at that. The load's end is the deadline.
            while matches!(result, Err(ClientError::OutcomeUnknown)) {
                tokio::time::sleep(PAUSE).await;
                result = match session.resume().await {
                    Ok(Some(SessionDone::Appended(appended))) => Ok(appended),
                    Ok(_) => unreachable!("an append is unfinished, and ends as one"),
                    Err(error) => Err(error),
                };
            }
            (Completion { tag, result }, place, session)
        }));
        Ok(())
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        recv_ended(&mut self.open, &mut self.ended).await;
        for (completion, place, session) in self.ended.drain(..) {
            self.idle.insert(place, session);
            out.push(completion);
        }
    }
}

/// Clients in the process of a node.
pub(crate) struct Embedded {
    engine: Engine,
    open: OpenAppends,
}

impl Embedded {
    pub(crate) fn new(engine: Engine) -> Embedded {
        Embedded { engine, open: OpenAppends::new() }
    }
}

impl Target for Embedded {
    fn try_append(&mut self, _: u32, group: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
        let (engine, block) = (self.engine.clone(), RecordBlock::from_records(records));
        self.open.push(Box::pin(async move {
            let appended = engine.append_block(group, block).await;
            let result = appended
                .map(|Appended { first, index, term, .. }| client::Appended { offset: first, index, term })
                .map_err(ClientError::Request);
            Completion { tag, result }
        }));
        Ok(())
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        recv_ended(&mut self.open, out).await;
    }
}
