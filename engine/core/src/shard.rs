//! The shard: routes inputs to its groups, keeps time, numbers the flushes and contains panics.
//!
//! Only groups that an input touched are looked at when the turn ends, and only those that are not quiet at a tick.
//! Whatever panics inside a group takes out that group alone: what it had said in that call is
//! withdrawn but for answers and events, its requests are answered, and that replica never speaks again. Another begins from
//! what its disk has, when somebody asks for it, or at once where damaged entries were the reason (`revive`).

mod awake;
mod check;
mod recover;
mod revive;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::disk_watch::DiskWatch;
use crate::error::{BusyReason, ConfigError, RequestError};
use crate::find::{Find, Seeker};
use crate::group::{Buffers, Replica, SendBudget, SnapshotsOpen, Turn};
use crate::group_meta::GroupMeta;
use crate::ids::{
    FlushSeq, GroupId, Index, LogPosition, NodeId, Owner, Sequence, SessionId, ShardId, Timestamp, WallTime,
};
use crate::io::{
    Append, ConfState, Event, FetchError, FetchId, GroupState, GroupStatus, HardState, Input, Invite,
    LogEntry, MessageKind, Open, Outputs, PeerMessage, Recover, Reply, Role, ShardConfig, Token,
};
use crate::jitter::mix;
use crate::liveness::Liveness;
use crate::loading::{Loaded, Loading, Step};
use crate::mutants::{self, Mutant};
use crate::placement::Placements;
use crate::read_index::Read;
use crate::records::{ReadKind, RecordRead};
use crate::sessions::RunOutcome;
use crate::spread::Spread;
use crate::tombstone::{Tombstone, are_first_members};
use crate::validate;
use revive::{Kept, Quarantined, taken_out};

/// Campaigns that begin in one turn at most: when thousands of groups lose their leader together, the others wait
/// for a later tick, so that no turn takes long and no flush gets large.
const CAMPAIGNS_PER_TURN_MAX: u32 = 1024;
/// Groups of a shard at most, those that it has left included.
const GROUPS_MAX: usize = 1 << 20;

/// Many Raft groups as one deterministic state machine. See the crate's documentation.
pub struct Shard {
    config: ShardConfig,
    /// The groups' positions. A position is never given to another group.
    positions: BTreeMap<GroupId, usize>,
    groups: Vec<GroupId>,
    members: Vec<Member>,
    /// Positions of the members that the end of the turn has to look at, in order of their first
    /// input; each once.
    dirty: Vec<usize>,
    is_listed: Vec<bool>,
    last_seq: FlushSeq,
    persisted: FlushSeq,
    /// Flushes on their way, with the positions of the members in each.
    flushes: VecDeque<(FlushSeq, SmallVec<[usize; 4]>)>,
    disk: DiskWatch,
    spread: Spread,
    /// Positions of the members that ticks are for: all but quiet ones, those taken out, and those that wait.
    awake: Vec<usize>,
    is_awake: Vec<bool>,
    /// Replicas that wait for their first tick, or for a message or request.
    dormant: BTreeSet<usize>,
    /// When quiet members wake by themselves, with their positions; one for each at most.
    alarms: BTreeSet<(Timestamp, usize)>,
    alarm_of: Vec<Option<Timestamp>>,
    liveness: Liveness,
    placements: Placements,
    /// Members that many groups have: one copy for all that begin with them.
    common_members: Arc<ConfState>,
    /// Whether replicas have come, or their members or their places have changed, since `liveness` was told of them.
    have_members_changed: bool,
    /// Replicas that have begun since the shard did.
    lives: u64,
    /// Groups that are to be recovered as the turn ends. Bounded by `RECOVERIES_MAX`; full means busy.
    recoveries: Vec<Recover>,
    campaigns_left: u32,
    ticked: Timestamp,
    wall: WallTime,
    next_fetch: FetchId,
    snapshots_open: SnapshotsOpen,
    send_budget: SendBudget,
    buffers: Buffers,
    window_bytes: usize,
    /// Of proposals that wait or are not committed, over all groups.
    pending_bytes: usize,
    /// Bytes in memory at which entries are let go next.
    evict_at_bytes: usize,
    is_fenced: bool,
}

enum Member {
    Loading(Box<Loading>),
    Live(Box<Replica>),
    Out(Box<Quarantined>),
    Left(Box<Tombstone>),
}

impl Shard {
    /// A shard with these groups. `last_seq` is the newest flush of the shard's journal, 0 if there
    /// is none. A group whose state is inconsistent is quarantined, and told by an [`Event`] of the
    /// first turn.
    ///
    /// # Errors
    /// [`ConfigError`] when a setting cannot work, or a group is given twice.
    pub fn new(
        config: ShardConfig,
        last_seq: FlushSeq,
        mut states: Vec<GroupState>,
        now: Timestamp,
    ) -> Result<Shard, ConfigError> {
        check::config(&config)?;
        states.sort_by_key(|state| state.group);
        let groups: Vec<GroupId> = states.iter().map(|state| state.group).collect();
        if groups.first() == Some(&GroupId(0)) {
            return Err(ConfigError::GroupZero);
        }
        if let Some(pair) = groups.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::DuplicateGroup { group: pair[0] });
        }
        let is_elsewhere = |group: &&GroupId| config.placement.shard_of(**group) != config.shard;
        if let Some(&group) = groups.iter().find(is_elsewhere) {
            return Err(ConfigError::Misplaced { group, shard: config.placement.shard_of(group) });
        }
        let mut members: Vec<Member> = states.into_iter().map(|state| start(&config, state, now)).collect();
        // They would go on in the memory of the states, which are many times as large.
        members.shrink_to_fit();
        let mut shard = Shard {
            evict_at_bytes: config.window_bytes_max,
            disk: DiskWatch::new(),
            spread: Spread::new(&config, now),
            liveness: Liveness::new(&config, now),
            placements: Placements::new(&config),
            awake: (0..groups.len()).collect(),
            is_awake: vec![true; groups.len()],
            dormant: BTreeSet::new(),
            alarms: BTreeSet::new(),
            alarm_of: vec![None; groups.len()],
            common_members: Arc::default(),
            have_members_changed: true,
            lives: 0,
            recoveries: Vec::new(),
            campaigns_left: CAMPAIGNS_PER_TURN_MAX,
            config,
            dirty: Vec::new(),
            is_listed: vec![false; groups.len()],
            positions: groups.iter().copied().zip(0..).collect(),
            groups,
            members,
            last_seq,
            persisted: last_seq,
            flushes: VecDeque::new(),
            ticked: now,
            wall: WallTime(0),
            next_fetch: FetchId(1),
            snapshots_open: SnapshotsOpen::default(),
            send_budget: SendBudget::new(now),
            buffers: Buffers::default(),
            window_bytes: 0,
            pending_bytes: 0,
            is_fenced: false,
        };
        for at in 0..shard.members.len() {
            let needs_turn = match &mut shard.members[at] {
                Member::Live(replica) => {
                    replica.share_members(&mut shard.common_members);
                    shard.window_bytes += replica.window_bytes();
                    replica.is_dirty()
                }
                Member::Loading(_) | Member::Out(_) => true,
                Member::Left(_) => false,
            };
            if needs_turn {
                shard.list(at);
            }
        }
        shard.stagger();
        Ok(shard)
    }

    /// Takes one input. What has to be done is added to `out`, most of it by [`Input::EndTurn`].
    /// `now` must not run backwards. The driver empties `out` before the next turn begins.
    ///
    /// # Panics
    /// If a turn ends while `out` still holds the append of the last one.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Outputs) {
        if self.is_fenced {
            return refuse_when_fenced(input, out);
        }
        match input {
            Input::EndTurn => self.handle_end_turn(now, out),
            Input::Wall(at) => self.wall = self.wall.max(at),
            Input::Message(message) => self.handle_message(now, message, out),
            Input::Propose(propose) => {
                let (token, group) = (propose.token, propose.group);
                self.request(now, token, group, out, |replica, turn| replica.handle_propose(turn, propose));
            }
            Input::Read { token, group, consistency, may_forward, deadline } => {
                let read = Read { token, consistency, may_forward, deadline };
                self.request(now, token, group, out, |replica, turn| replica.handle_read(turn, read));
            }
            Input::ReadRecords { token, group, from, bytes_max, records_max, is_waiting, deadline } => {
                let kind = if is_waiting { ReadKind::Waiting } else { ReadKind::Once };
                let read = RecordRead { token, from, bytes_max, records_max, deadline, kind };
                self.request(now, token, group, out, |replica, turn| replica.handle_read_records(turn, read));
            }
            Input::Tail { token, group, from, granted_bytes, deadline } => {
                let kind = ReadKind::Tail { granted: granted_bytes, sent: 0 };
                let (bytes_max, records_max) = (usize::MAX, u32::MAX);
                let read = RecordRead { token, from, bytes_max, records_max, deadline, kind };
                self.request(now, token, group, out, |replica, turn| replica.handle_read_records(turn, read));
            }
            Input::GrantTail { token, group, granted_bytes } => {
                self.with_group(now, group, out, |replica, turn| {
                    replica.handle_tail(turn, token, Some(granted_bytes));
                });
            }
            Input::EndTail { token, group } => {
                self.with_group(now, group, out, |replica, turn| replica.handle_tail(turn, token, None));
            }
            Input::Find { token, group, at, deadline } => {
                let find = Find::new(Seeker::Client(token), at, deadline);
                self.request(now, token, group, out, |replica, turn| replica.handle_find(turn, token, find));
            }
            Input::Command { token, group, command, deadline } => {
                self.request(now, token, group, out, |replica, turn| {
                    replica.handle_command(turn, token, command, deadline);
                });
            }
            Input::Persisted { seq } => self.handle_persisted(now, seq, out),
            Input::PersistFailed => self.handle_persist_failed(now, out),
            Input::Damaged { group, damage } => self.handle_damaged(now, group, damage, out),
            Input::MachinePanicked { group } => self.handle_machine_panicked(now, group, out),
            Input::Revive { token, group } => self.revive(token, group, out),
            Input::Recover(recover) => self.handle_recover(recover, out),
            Input::Reopened { group, result } => self.handle_reopened(now, group, result, out),
            Input::Fetched { id, group, result } => self.handle_fetched(now, id, group, result, out),
            Input::Applied { group, index } => {
                self.with_group(now, group, out, |replica, turn| replica.handle_applied(turn, index));
            }
            Input::Snapshot { group, event } => {
                self.with_group(now, group, out, |replica, turn| replica.handle_snapshot(turn, event));
            }
            Input::Placement { node, placement } => self.handle_placement(now, node, placement, out),
            Input::Unreachable { node } => self.handle_unreachable(now, node, out),
            Input::ChangeMembers { token, group, changes, deadline } => {
                self.request(now, token, group, out, |replica, turn| {
                    replica.handle_change_members(turn, token, &changes, deadline);
                });
            }
            Input::TransferLeader { token, group, to } => {
                self.request(now, token, group, out, |replica, turn| {
                    replica.handle_transfer(turn, token, to);
                });
            }
            Input::Open(open) => self.open(now, open, out),
            Input::RemoveGroup { token, group, deadline } => {
                self.request(now, token, group, out, |replica, turn| {
                    replica.handle_remove_group(turn, token, deadline);
                });
            }
            Input::StepDown { token, group } => {
                self.request(now, token, group, out, |replica, turn| replica.handle_step_down(turn, token));
            }
        }
    }

    /// When time itself is the next input, if nothing arrives before: feed [`Input::EndTurn`] then.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.is_fenced || self.groups.is_empty() {
            return None;
        }
        if !self.dirty.is_empty() {
            return Some(self.ticked);
        }
        let tick = self.ticked.after(self.config.tick);
        if self.has_ticks() { Some(tick) } else { self.next_wakeup_when_quiet().map(|at| at.max(tick)) }
    }

    /// How a group's replica stands; `None` if there is none.
    #[must_use]
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.position(group).and_then(|at| self.describe(&self.members[at]))
    }

    /// How all replicas stand, in order of group.
    pub fn statuses(&self) -> impl Iterator<Item = GroupStatus> {
        self.positions.values().filter_map(|at| self.describe(&self.members[*at]))
    }

    fn describe(&self, member: &Member) -> Option<GroupStatus> {
        Some(GroupStatus { is_disk_hung: self.disk.is_hung(), ..member.status()? })
    }

    /// What a group knows besides its records, as of the replica's commit index; `None` while it is not in service.
    #[must_use]
    pub fn meta(&self, group: GroupId) -> Option<&GroupMeta> {
        self.position(group).and_then(|at| self.members[at].live()).map(Replica::meta)
    }

    /// What became of a record of a client's session. It is all there is to know where a linearizable read has just been
    /// answered by a replica that leads ([`Input::Read`] that is not forwarded).
    ///
    /// # Errors
    /// [`RequestError::Session`], or that the group is not in service here.
    pub fn session_outcome(
        &self,
        group: GroupId,
        session: SessionId,
        owner: Owner,
        sequence: Sequence,
    ) -> Result<RunOutcome, RequestError> {
        let replica = self.position(group).and_then(|at| self.members[at].live());
        let replica = replica.ok_or(RequestError::Quarantined)?;
        replica
            .session_outcome(session, owner, sequence, self.wall)
            .map_err(|refusal| RequestError::Session { refusal })
    }

    /// The shard of its receiver that a message is for.
    #[must_use]
    pub fn destination(&self, message: &PeerMessage) -> ShardId {
        self.placements.destination(message)
    }

    /// How far each replica's log is known to be the leader's, in order of node; empty unless the replica
    /// here leads. Never beyond the leader's last index.
    #[must_use]
    pub fn matched(&self, group: GroupId) -> Vec<(NodeId, Index)> {
        let replica = self.position(group).and_then(|at| self.members[at].live());
        replica.map_or_else(Vec::new, Replica::matched)
    }

    /// Shards of this node.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.config.placement.shard_count()
    }

    /// Bytes of proposals that wait or are not committed, of all groups: at most
    /// [`shard_pending_bytes_max`](ShardConfig::shard_pending_bytes_max) and one block.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    // Routing

    fn position(&self, group: GroupId) -> Option<usize> {
        self.positions.get(&group).copied()
    }

    fn with_group(
        &mut self,
        now: Timestamp,
        group: GroupId,
        out: &mut Outputs,
        call: impl FnOnce(&mut Replica, &mut Turn<'_>),
    ) {
        if let Some(at) = self.position(group) {
            self.call(now, at, out, call);
        }
    }

    fn request(
        &mut self,
        now: Timestamp,
        token: Token,
        group: GroupId,
        out: &mut Outputs,
        call: impl FnOnce(&mut Replica, &mut Turn<'_>),
    ) {
        let error = match self.position(group).map(|at| (at, &self.members[at])) {
            Some((at, Member::Live(_))) => {
                self.dormant.remove(&at);
                return self.call(now, at, out, call);
            }
            Some((_, Member::Out(_))) => RequestError::Quarantined,
            Some((_, Member::Loading(_))) => RequestError::busy(BusyReason::Starting),
            Some((_, Member::Left(_))) | None => RequestError::UnknownGroup,
        };
        out.replies.push(Reply::Failed { token, group, error });
    }

    fn handle_message(&mut self, now: Timestamp, message: PeerMessage, out: &mut Outputs) {
        if message.kind == MessageKind::Beat {
            return self.handle_beat(now, &message, out);
        }
        let at = self.position(message.group);
        let tombstone = match at.map(|at| (at, &self.members[at])) {
            Some((at, Member::Live(_))) => {
                self.dormant.remove(&at);
                return self.call(now, at, out, |replica, turn| replica.handle_message(turn, message));
            }
            Some((_, Member::Loading(_) | Member::Out(_))) => return,
            Some((_, Member::Left(tombstone))) => Some(tombstone),
            None => match self.placements.elsewhere(message.group) {
                Some(reason) => return refuse_message(&message, reason, out),
                None => None,
            },
        };
        if message.kind != MessageKind::Invite {
            // Whoever takes this node for a member invites it.
            return out.sends.extend(tombstone.and_then(|tombstone| tombstone.answer(&message)));
        }
        match validate::check_invite(self.config.node, &message) {
            Ok(members) => {
                let since = LogPosition { term: message.log_term, index: message.index };
                if tombstone.is_none_or(|tombstone| tombstone.admits(since)) {
                    out.invites.push(Invite { group: message.group, members, since });
                }
            }
            Err(reason) => refuse_message(&message, reason, out),
        }
    }

    /// A replica begins here.
    fn open(&mut self, now: Timestamp, open: Open, out: &mut Outputs) {
        let Open { token, group, .. } = open;
        match self.try_open(now, open) {
            // Told when it is durable.
            Ok(true) => {}
            Ok(false) => out.replies.push(Reply::Opened { token, group }),
            Err(error) => out.replies.push(Reply::Failed { token, group, error }),
        }
    }

    /// Whether a replica began; it is here already otherwise.
    fn try_open(&mut self, now: Timestamp, open: Open) -> Result<bool, RequestError> {
        let (group, token) = (open.group, open.token);
        let at = self.position(group);
        if let Some(Member::Left(tombstone)) = at.map(|at| &self.members[at])
            && tombstone.is_of_removed_group()
        {
            return Err(RequestError::GroupRemoved);
        }
        if group == GroupId(0) || !are_first_members(&open.members) {
            let what = "a group has a number above 0, and 1 to 256 different members";
            return Err(RequestError::Invalid { what });
        }
        if open.since.index == Index(0) && !open.members.is_member(self.config.node) {
            return Err(RequestError::Invalid { what: "this node is not among the group's members" });
        }
        if self.placements.elsewhere(group).is_some() {
            return Err(RequestError::Invalid { what: "the group is placed on another shard of this node" });
        }
        let state = match at.map(|at| &self.members[at]) {
            None if self.groups.len() >= GROUPS_MAX => return Err(RequestError::busy(BusyReason::Groups)),
            None => fresh(open),
            Some(Member::Left(tombstone)) if tombstone.admits(open.since) => tombstone.reopen(fresh(open)),
            Some(Member::Live(replica)) if replica.began_with(&open.members) => {
                return if replica.is_opening() {
                    Err(RequestError::busy(BusyReason::Starting))
                } else {
                    Ok(false)
                };
            }
            Some(Member::Left(_) | Member::Live(_) | Member::Loading(_) | Member::Out(_)) => {
                return Err(RequestError::GroupExists);
            }
        };
        let mut member = start(&self.next_life(), state, now);
        if let Member::Live(replica) = &mut member {
            replica.handle_opening(token, at.is_some());
        }
        let at = match at {
            Some(at) => {
                self.members[at] = member;
                at
            }
            None => {
                let at = self.members.len();
                self.positions.insert(group, at);
                self.groups.push(group);
                self.members.push(member);
                self.is_listed.push(false);
                self.is_awake.push(false);
                self.alarm_of.push(None);
                at
            }
        };
        self.have_members_changed = true;
        self.rouse(now, at);
        self.list(at);
        Ok(true)
    }

    /// The settings of a replica that begins now: its reads must not be taken for those of one that was here before, whose
    /// rounds may still be answered.
    fn next_life(&mut self) -> ShardConfig {
        self.lives += 1;
        ShardConfig { seed: mix(self.config.seed ^ mix(self.lives)), ..self.config.clone() }
    }

    fn handle_persisted(&mut self, now: Timestamp, seq: FlushSeq, out: &mut Outputs) {
        self.persisted = self.persisted.max(seq.min(self.last_seq));
        self.disk.handle_persisted(self.persisted);
        while self.flushes.front().is_some_and(|(flush, _)| *flush <= self.persisted) {
            let (_, members) = self.flushes.pop_front().expect("looked at just now");
            for at in members {
                self.call(now, at, out, |replica, turn| replica.handle_persisted(turn));
                self.list_if_out(at);
            }
        }
    }

    fn handle_persist_failed(&mut self, now: Timestamp, out: &mut Outputs) {
        for at in 0..self.members.len() {
            self.call(now, at, out, |replica, turn| replica.handle_fence(turn));
            if let Member::Out(quarantined) = &mut self.members[at] {
                quarantined.handle_fence(out);
            }
        }
        self.fail_recoveries(out);
        self.is_fenced = true;
        self.flushes.clear();
        out.events.push(Event::Fenced);
    }

    fn handle_unreachable(&mut self, now: Timestamp, node: NodeId, out: &mut Outputs) {
        for at in 0..self.members.len() {
            self.call(now, at, out, |replica, turn| replica.handle_unreachable(turn, node));
        }
    }

    fn handle_fetched(
        &mut self,
        now: Timestamp,
        id: FetchId,
        group: GroupId,
        result: Result<Vec<LogEntry>, FetchError>,
        out: &mut Outputs,
    ) {
        let Some(at) = self.position(group) else { return };
        let Member::Loading(loading) = &mut self.members[at] else {
            return self.call(now, at, out, |replica, turn| replica.handle_fetched(turn, id, result));
        };
        let is_missing = result == Err(FetchError::Missing);
        let damage = result.as_ref().err().and_then(FetchError::damage);
        match loading.handle_fetched(id, result) {
            Step::Waiting if is_missing => {}
            Step::Waiting => self.list(at),
            Step::Broken(reason) => self.quarantine(now, at, reason, damage, out),
            Step::Complete(loaded) => {
                self.members[at] = start_loaded(&self.next_life(), &loaded, now);
                self.have_members_changed = true;
                if let Member::Live(replica) = &mut self.members[at] {
                    replica.share_members(&mut self.common_members);
                    self.window_bytes += replica.window_bytes();
                }
                self.list(at);
            }
        }
    }

    // Turns

    fn handle_end_turn(&mut self, now: Timestamp, out: &mut Outputs) {
        assert!(out.append.is_none(), "the driver empties the outputs of a turn before the next");
        self.campaigns_left = CAMPAIGNS_PER_TURN_MAX;
        self.handle_ticks(now, out);
        self.send_beats(now, out);
        self.recover_groups(now, out);
        let mut dirty = std::mem::take(&mut self.dirty);
        for at in dirty.drain(..) {
            self.is_listed[at] = false;
            match &mut self.members[at] {
                Member::Live(_) => self.handle_group_turn(now, at, out),
                Member::Left(_) => {}
                Member::Loading(loading) => {
                    let fetch = loading.take_fetch(&mut self.next_fetch, self.config.window_bytes_max);
                    out.fetches.extend(fetch);
                }
                Member::Out(quarantined) => quarantined.handle_turn(self.persisted, out),
            }
        }
        // A group can ask for another turn within its own: that is for the next one.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        self.number_flush(now, out);
        self.evict();
    }

    fn handle_group_turn(&mut self, now: Timestamp, at: usize, out: &mut Outputs) {
        let mut left = None;
        self.call(now, at, out, |replica, turn| {
            left = replica.take_leave(turn);
            if left.is_none() {
                replica.handle_turn(turn);
            }
        });
        let Some(tombstone) = left else { return };
        self.discount(now, at);
        let seq = FlushSeq(self.last_seq.0 + 1);
        let append = out.append.get_or_insert_with(|| Append { seq, groups: Vec::new() });
        append.groups.push(tombstone.append());
        self.members[at] = Member::Left(Box::new(tombstone));
        self.have_members_changed = true;
        // Whoever has not heard of it has to look anew.
        self.liveness.withdraw(now);
    }

    /// Ticks that are due. After a pause only a few are made up for: messages that waited through
    /// it are in the same turn or the next, and must be looked at before anybody campaigns.
    fn handle_ticks(&mut self, now: Timestamp, out: &mut Outputs) {
        let tick = u64::try_from(self.config.tick.as_nanos()).unwrap_or(u64::MAX);
        let due = now.0.saturating_sub(self.ticked.0) / tick;
        if due == 0 {
            return;
        }
        // What could not be let go of may have become durable since.
        self.evict_at_bytes = self.config.window_bytes_max;
        self.send_budget.fill(now, self.config.tick, self.config.snapshots.send_bytes_per_second);
        let ticks_max = u64::from(self.config.heartbeat_ticks);
        let pause = self.pause_before(now);
        self.disk.handle_pause(pause);
        self.liveness.handle_pause(now, pause);
        let disk = self.disk.handle_tick(now, &self.config);
        self.ticked = if due > ticks_max { now } else { Timestamp(self.ticked.0 + due * tick) };
        let ticks = u32::try_from(due.min(ticks_max)).expect("at most heartbeat_ticks");
        if let Some(event) = disk {
            self.handle_disk_event(now, event, out);
        }
        self.tick_awake(now, ticks, out);
        self.ring_alarms(now, out);
        self.handle_silence(now, out);
        if self.spread.next_at(&self.config).is_some_and(|at| now >= at) {
            self.spread(now, out);
        }
    }

    /// Gives leaderships away, if this node has more than its share of them.
    fn spread(&mut self, now: Timestamp, out: &mut Outputs) {
        let seats: Vec<_> = self.members.iter().filter_map(Member::live).map(Replica::seat).collect();
        let candidates = self.spread.candidates(&self.config, now, &seats);
        candidates.make(|group, to| {
            let Some(at) = self.position(group) else { return false };
            let mut is_taken = false;
            self.call(now, at, out, |replica, turn| is_taken = replica.handle_spread(turn, to));
            if is_taken {
                self.spread.handle_taken(group, to);
            }
            is_taken
        });
        self.spread.put_off(&self.config, now);
    }

    fn number_flush(&mut self, now: Timestamp, out: &Outputs) {
        let Some(append) = &out.append else { return };
        self.disk.handle_handed_over(now, append.seq);
        self.last_seq = append.seq;
        let members = append.groups.iter().filter_map(|group| self.position(group.group)).collect();
        self.flushes.push_back((append.seq, members));
    }

    /// Lets go of entries beyond `window_bytes_max`, most from the groups that hold most, down to an
    /// eighth below it so that this is rare.
    fn evict(&mut self) {
        if self.window_bytes <= self.evict_at_bytes {
            return;
        }
        let slack = self.config.window_bytes_max / 8;
        let group_bytes_max = water_level(
            self.members.iter().filter_map(Member::live).map(Replica::window_bytes).collect(),
            self.config.window_bytes_max - slack,
        );
        self.window_bytes = 0;
        for member in &mut self.members {
            if let Member::Live(replica) = member {
                replica.evict(group_bytes_max);
                self.window_bytes += replica.window_bytes();
            }
        }
        // What is not durable or committed stays: do not look for it again at once.
        self.evict_at_bytes = self.config.window_bytes_max.max(self.window_bytes + slack);
    }

    // Containment

    fn list(&mut self, at: usize) {
        if !std::mem::replace(&mut self.is_listed[at], true) {
            self.dirty.push(at);
        }
    }

    /// Calls into one group; takes it out if it panics or finds itself broken.
    fn call(
        &mut self,
        now: Timestamp,
        at: usize,
        out: &mut Outputs,
        call: impl FnOnce(&mut Replica, &mut Turn<'_>),
    ) {
        let Member::Live(replica) = &mut self.members[at] else { return };
        let (bytes_before, pending_before) = (replica.window_bytes(), replica.pending_bytes());
        let (open_before, leader_before) = (replica.snapshots_open(), replica.leader());
        let open_others = self.snapshots_open.after(open_before, SnapshotsOpen::default());
        let said_before = Said::of(out);
        let mut turn = Turn {
            config: &self.config,
            now,
            wall: self.wall,
            seq: FlushSeq(self.last_seq.0 + 1),
            persisted: self.persisted,
            disk: self.disk.health(now),
            liveness: &self.liveness,
            placements: &self.placements,
            campaigns_left: &mut self.campaigns_left,
            next_fetch: &mut self.next_fetch,
            snapshots_open: open_others,
            send_budget: &mut self.send_budget,
            shard_pending_bytes: self.pending_bytes,
            buffers: &mut self.buffers,
            out,
        };
        let result = catch_unwind(AssertUnwindSafe(|| call(replica, &mut turn)));
        let reason = match result {
            Ok(()) => replica.broken().map(|(reason, damage)| (reason.to_owned(), damage)),
            Err(panic) => Some((panic_text(panic.as_ref()), None)),
        };
        if let Some((reason, damage)) = reason {
            said_before.withdraw_rest(out);
            self.window_bytes -= bytes_before;
            self.pending_bytes -= pending_before;
            self.snapshots_open = open_others;
            return self.quarantine(now, at, reason, damage, out);
        }
        let (is_dirty, is_awake) = (replica.is_dirty(), !replica.is_quiet());
        let have_members_changed = replica.take_members_changed();
        self.have_members_changed |= have_members_changed;
        if have_members_changed || replica.leader() != leader_before {
            self.spread.handle_change(now, &self.config);
        }
        if replica.take_member_removed() {
            // It may have missed that, and must not rest on what it agreed to. Whoever is still a member is told by its leader
            // of all that it misses.
            self.liveness.withdraw(now);
        }
        self.snapshots_open = open_others.after(SnapshotsOpen::default(), replica.snapshots_open());
        self.window_bytes = self.window_bytes + replica.window_bytes() - bytes_before;
        self.pending_bytes = self.pending_bytes + replica.pending_bytes() - pending_before;
        if is_dirty {
            self.list(at);
        }
        if is_awake && !self.dormant.contains(&at) {
            self.rouse(now, at);
        }
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("node", &self.config.node)
            .field("groups", &self.groups.len())
            .field("last_seq", &self.last_seq)
            .field("persisted", &self.persisted)
            .field("is_fenced", &self.is_fenced)
            .finish_non_exhaustive()
    }
}

impl Member {
    fn live(&self) -> Option<&Replica> {
        match self {
            Member::Live(replica) => Some(replica),
            Member::Loading(_) | Member::Out(_) | Member::Left(_) => None,
        }
    }

    fn status(&self) -> Option<GroupStatus> {
        match self {
            Member::Live(replica) => Some(replica.status()),
            Member::Loading(loading) => Some(loading.status()),
            Member::Out(quarantined) => Some(quarantined.status.clone()),
            Member::Left(_) => None,
        }
    }
}

/// How much had been said before a call into a group.
struct Said {
    groups: usize,
    sends: usize,
    applies: usize,
    fetches: usize,
    snapshots: usize,
    compares: usize,
}

impl Said {
    fn of(out: &Outputs) -> Said {
        Said {
            groups: out.append.as_ref().map_or(0, |append| append.groups.len()),
            sends: out.sends.len(),
            applies: out.applies.len(),
            fetches: out.fetches.len(),
            snapshots: out.snapshots.len(),
            compares: out.compares.len(),
        }
    }

    /// Takes back what was said since, except answers and events: those stand.
    fn withdraw_rest(&self, out: &mut Outputs) {
        if let Some(append) = &mut out.append {
            append.groups.truncate(self.groups);
        }
        out.append.take_if(|append| append.groups.is_empty());
        out.sends.truncate(self.sends);
        // Whoever waits for a command's response is told that there will be none.
        for apply in out.applies.drain(self.applies..) {
            let error = RequestError::OutcomeUnknown { leader: None };
            let failed = |token| Reply::Failed { token, group: apply.group, error: error.clone() };
            out.replies.extend(apply.waiters.iter().map(|waiter| failed(waiter.token)));
        }
        out.fetches.truncate(self.fetches);
        out.snapshots.truncate(self.snapshots);
        out.compares.truncate(self.compares);
    }
}

fn refuse_message(message: &PeerMessage, reason: validate::Refusal, out: &mut Outputs) {
    let (group, from) = (message.group, message.from);
    out.events.push(Event::MessageRefused { group, from, reason });
}

fn fresh(open: Open) -> GroupState {
    let Open { group, members, since: joined_at, has_state_machine, retention, .. } = open;
    GroupState { joined_at, retention, ..GroupState::fresh(group, members, has_state_machine) }
}

fn start(config: &ShardConfig, mut state: GroupState, now: Timestamp) -> Member {
    if mutants::is(Mutant::HardStateForgotten) {
        state.hard_state = HardState { commit: state.hard_state.commit, ..HardState::default() };
    }
    if let Some(tombstone) = Tombstone::find(&state) {
        return Member::Left(Box::new(tombstone));
    }
    match Loading::new(state) {
        Ok(loading) => Member::Loading(Box::new(loading)),
        Err(loaded) => start_loaded(config, &loaded, now),
    }
}

fn start_loaded(config: &ShardConfig, loaded: &Loaded, now: Timestamp) -> Member {
    let state = &loaded.state;
    let status = GroupStatus {
        term: state.hard_state.term,
        commit: state.hard_state.commit,
        last: state.last,
        last_term: state.last_term(),
        ..unknown_status(state.group)
    };
    match catch_unwind(AssertUnwindSafe(|| Replica::new(config, loaded, now))) {
        Ok(Ok(replica)) => Member::Live(Box::new(replica)),
        Ok(Err(reason)) => taken_out(status, reason, Kept::of(state)),
        Err(panic) => taken_out(status, panic_text(panic.as_ref()), Kept::of(state)),
    }
}

fn unknown_status(group: GroupId) -> GroupStatus {
    GroupStatus {
        group,
        role: Role::Follower,
        term: Default::default(),
        leader: None,
        commit: Default::default(),
        applied: Default::default(),
        last: Default::default(),
        last_term: Default::default(),
        first: Default::default(),
        end: Default::default(),
        members: Arc::default(),
        members_since: Default::default(),
        is_quarantined: false,
        is_disk_hung: false,
        is_quiet: false,
        is_under_repair: false,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Answers requests of a shard that is fenced; everything else is dropped.
fn refuse_when_fenced(input: Input, out: &mut Outputs) {
    let (token, group) = match input {
        Input::Propose(propose) => (propose.token, propose.group),
        Input::Read { token, group, .. }
        | Input::ReadRecords { token, group, .. }
        | Input::Tail { token, group, .. }
        | Input::Find { token, group, .. }
        | Input::Command { token, group, .. }
        | Input::ChangeMembers { token, group, .. }
        | Input::TransferLeader { token, group, .. }
        | Input::RemoveGroup { token, group, .. }
        | Input::Open(Open { token, group, .. })
        | Input::Revive { token, group }
        | Input::Recover(Recover { token, group, .. })
        | Input::StepDown { token, group } => (token, group),
        Input::EndTurn
        | Input::Wall(_)
        | Input::Message(_)
        | Input::Persisted { .. }
        | Input::PersistFailed
        | Input::Damaged { .. }
        | Input::MachinePanicked { .. }
        | Input::Reopened { .. }
        | Input::Fetched { .. }
        | Input::Applied { .. }
        | Input::Snapshot { .. }
        | Input::Unreachable { .. }
        | Input::Placement { .. }
        | Input::GrantTail { .. }
        | Input::EndTail { .. } => return,
    };
    out.replies.push(Reply::Failed { token, group, error: RequestError::Fenced });
}

/// The size that, as a maximum for each, brings the sum of sizes down to `sum_max`.
fn water_level(mut sizes: Vec<usize>, sum_max: usize) -> usize {
    sizes.sort_unstable();
    let (mut left, mut count) = (sum_max, sizes.len());
    for size in sizes {
        if size * count > left {
            return left / count;
        }
        left -= size;
        count -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests;
