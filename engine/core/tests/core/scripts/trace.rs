//! What shards say, as short lines.

use std::collections::BTreeMap;
use std::time::Duration;

use iroh_raft_core::{
    Append, Apply, Compare, Event, Fetch, FetchFrom, Freshness, GroupAppend, GroupId, GroupStatus, HardState,
    Index, LogChange, LogEntry, LogStart, NodeId, Recovered, Reopen, Reply, Role, Send, SnapshotTask, Token,
};

use super::message::{print_entry, print_members, print_message};
use super::snapshots::print_step;
use crate::harness::disk::StoredGroup;

/// How much of what happens is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Detail {
    All,
    /// What clients, operators and state machines get to see.
    News,
    Nothing,
}

pub(super) struct Trace {
    pub(super) detail: Detail,
    lines: Vec<String>,
    /// What each request asked, by which its answer is known.
    names: BTreeMap<Token, String>,
}

impl Trace {
    pub(super) fn new() -> Trace {
        Trace { detail: Detail::All, lines: Vec::new(), names: BTreeMap::new() }
    }

    pub(super) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    pub(super) fn put_before(&mut self, lines: Vec<String>) {
        self.lines.splice(0..0, lines);
    }

    pub(super) fn name(&mut self, token: Token, name: String) {
        self.names.insert(token, name);
    }

    /// What a command was asked to print, however much else is printed.
    pub(super) fn answer(&mut self, line: String) {
        self.lines.push(line);
    }

    pub(super) fn detail(&mut self, line: String) {
        if self.detail == Detail::All {
            self.lines.push(line);
        }
    }

    fn news(&mut self, line: String) {
        if self.detail != Detail::Nothing {
            self.lines.push(line);
        }
    }

    pub(super) fn append(&mut self, node: NodeId, append: &Append) {
        for group in &append.groups {
            let who = who(node, group.group);
            self.detail(format!("{who} flush {}:{}", append.seq, group_append(group)));
        }
    }

    pub(super) fn send(&mut self, node: NodeId, send: &Send) {
        let after = send.after.map(|seq| format!(", after flush {seq}")).unwrap_or_default();
        let message = &send.message;
        let who = who(node, message.group);
        self.detail(format!("{who} send {}: {}{after}", message.to, print_message(message)));
    }

    pub(super) fn apply(&mut self, node: NodeId, apply: &Apply) {
        let waiters = apply.waiters.iter().map(|waiter| self.name_of(waiter.token)).collect::<Vec<_>>();
        let waiters =
            if waiters.is_empty() { String::new() } else { format!(", answering {}", waiters.join(" ")) };
        self.news(format!("{} apply{}{waiters}", who(node, apply.group), entries(&apply.entries)));
    }

    pub(super) fn fetch(&mut self, node: NodeId, fetch: &Fetch) {
        let from = match fetch.from {
            FetchFrom::Index(index) => format!("index {index}"),
            FetchFrom::Offset(offset) => format!("offset {offset}"),
            FetchFrom::Newest { bytes } => format!("the newest {bytes} bytes"),
        };
        self.news(format!("{} fetch from {from} to index {}", who(node, fetch.group), fetch.to));
    }

    pub(super) fn reopen(&mut self, node: NodeId, reopen: &Reopen) {
        let damage =
            reopen.damage.map(|damage| format!(" without entries {} to {}", damage.first, damage.last));
        self.news(format!("{} opens again{}", who(node, reopen.group), damage.unwrap_or_default()));
    }

    pub(super) fn snapshot(&mut self, node: NodeId, task: &SnapshotTask) {
        self.detail(format!("{} snapshot: {}", who(node, task.group), print_step(&task.step)));
    }

    pub(super) fn compare(&mut self, node: NodeId, compare: &Compare) {
        let Compare { group, index, table } = *compare;
        self.news(format!("{} digests its state after entry {index}: table {table:08x}", who(node, group)));
    }

    pub(super) fn reply(&mut self, node: NodeId, reply: &Reply) {
        let (token, group, what) = match reply {
            Reply::Appended { token, group, first, count, index, term } => {
                let count = if *count == 1 { String::new() } else { format!(" and {} more", count - 1) };
                (token, group, format!("appended at offset {first}{count}, entry {index}/{term}"))
            }
            Reply::Repeated { token, group, first, count, index, term } => {
                (token, group, format!("applied before: {count} from offset {first}, entry {index}/{term}"))
            }
            Reply::ReadReady { token, group, freshness } => (token, group, ready(freshness)),
            Reply::Records { token, group, entries: found, end, is_last, .. } => {
                let on = if *is_last { "" } else { ", more to come" };
                (token, group, format!("records{}, end {end}{on}", entries(found)))
            }
            Reply::Found { token, group, offset, end } => {
                (token, group, format!("found offset {offset}, end {end}"))
            }
            Reply::CommandDone { token, group, offset, index } => {
                let offset = offset.map_or("none".to_owned(), |offset| offset.to_string());
                (token, group, format!("done, now {offset}, entry {index}"))
            }
            Reply::LeadershipGiven { token, group, leader, term } => {
                let who = leader.map_or("nobody".to_owned(), |leader| format!("node {leader}"));
                (token, group, format!("done, {who} leads in term {term}"))
            }
            Reply::NotTransferred { token, group, error } => {
                (token, group, format!("failed ({:?}): {error}", error.retry()))
            }
            Reply::MembersChanged { token, group, index, members } => {
                (token, group, format!("{} since entry {index}", print_members(members)))
            }
            Reply::Opened { token, group } => (token, group, "begun".to_owned()),
            Reply::Recovered { token, group, recovered: Recovered { index, term, end } } => {
                (token, group, format!("recovered, entry {index}/{term}, records up to {end}"))
            }
            Reply::Removed { token, group } => (token, group, "removed".to_owned()),
            Reply::Failed { token, group, error } => {
                (token, group, format!("failed ({:?}): {error}", error.retry()))
            }
        };
        let (who, name) = (who(node, *group), self.name_of(*token));
        self.news(format!("{who} answer {name}: {what}"));
    }

    pub(super) fn event(&mut self, node: NodeId, event: &Event) {
        let line = match event {
            Event::LeaderChanged { group, term, leader } => {
                let what = match leader {
                    Some(leader) if *leader == node => format!("leads term {term}"),
                    Some(leader) => format!("follows {leader} in term {term}"),
                    None => format!("has no leader in term {term}"),
                };
                format!("{} {what}", who(node, *group))
            }
            Event::MembersChanged { group, index, members } => {
                format!("{} {} since entry {index}", who(node, *group), print_members(members))
            }
            Event::ReplicaLeft { group, since } => {
                format!("{} has left, as of entry {since}", who(node, *group))
            }
            Event::QuorumRecovered { group, lost, last, term } => {
                let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
                let lost = lost.join(" ");
                format!("{} RECOVERED without {lost}: {last} is kept, on in term {term}", who(node, *group))
            }
            Event::Quarantined { group, reason } => format!("{} quarantined: {reason}", who(node, *group)),
            Event::RepairNeeded { group, damage, last, commit, .. } => {
                let damage =
                    damage.map(|damage| format!(", has lost entries {} to {}", damage.first, damage.last));
                let damage = damage.unwrap_or_default();
                format!(
                    "{} under repair{damage}; sound up to {last}, knew commit {commit}",
                    who(node, *group)
                )
            }
            Event::Repaired { group, bound } => {
                format!("{} repaired up to its bound {bound}", who(node, *group))
            }
            Event::MessageRefused { group, from, reason } => {
                format!("{} refuse {from}: {reason}", who(node, *group))
            }
            Event::SnapshotTaken { group, index, .. } => {
                format!("{} has a snapshot at {index}", who(node, *group))
            }
            Event::SnapshotInstalled { group, index, .. } => {
                format!("{} goes on from the snapshot at {index}", who(node, *group))
            }
            Event::SnapshotDamaged { group, index } => {
                format!("{} snapshot at {index} is damaged", who(node, *group))
            }
            Event::SnapshotGivenUp { group, index, peer, chunks } => {
                format!(
                    "{} gives up the snapshot at {index} with {peer}, {chunks} chunks in",
                    who(node, *group)
                )
            }
            Event::Fenced => format!("{node} fenced"),
            Event::DiskHung { seq, waited } => format!("{node} disk hangs: flush {seq} for {waited:?}"),
            Event::DiskRecovered { hung } => format!("{node} disk is back after {hung:?}"),
        };
        self.news(line);
    }

    fn name_of(&self, token: Token) -> String {
        self.names.get(&token).expect("an answer to a request of this script").clone()
    }
}

/// The node, and the group where it is not the first.
pub(super) fn who(node: NodeId, group: GroupId) -> String {
    if group == GroupId(1) { node.to_string() } else { format!("{node} g{group}") }
}

/// What there is to see, and how old it may be where that is not known to be nothing.
fn ready(freshness: &Freshness) -> String {
    let Freshness { applied, commit, heard } = freshness;
    let commit = if commit == applied { String::new() } else { format!(", committed {commit}") };
    let heard = match heard {
        Some(Duration::ZERO) => String::new(),
        Some(heard) => format!(", heard {} ms ago", heard.as_millis()),
        None => ", heard nobody".to_owned(),
    };
    format!("look now, applied {applied}{commit}{heard}")
}

fn entries(entries: &[LogEntry]) -> String {
    entries.iter().map(|entry| format!(" {}", print_entry(entry))).collect()
}

fn hard_state(state: HardState) -> String {
    let HardState { term, vote, commit } = state;
    format!(" term={term} vote={vote} commit={commit}")
}

fn group_append(append: &GroupAppend) -> String {
    let place = |place: LogStart| format!("{}/{}, offset {}", place.index, place.term, place.offset);
    let change = match append.change {
        Some(LogChange::CompactTo(start)) => format!(" compact to {};", place(start)),
        Some(LogChange::StartAfter(start)) => format!(" void, start after {};", place(start)),
        Some(LogChange::CutAfter(place_of)) => format!(" cut after {};", place(place_of)),
        Some(LogChange::Remove) => " remove;".to_owned(),
        None => String::new(),
    };
    let members = append.conf_state.as_ref().map_or("", |_| " members");
    let state = append.hard_state.map(hard_state).unwrap_or_default();
    let repair = match append.under_repair {
        Some(true) => " under repair;",
        Some(false) => " repaired;",
        None => "",
    };
    let meta = append.meta.as_ref().map_or("", |_| " table");
    let joined = append.joined_at.map(|at| format!(" joined {}/{};", at.index, at.term)).unwrap_or_default();
    format!("{change}{repair}{joined}{members}{state}{meta}{}", entries(&append.entries))
}

pub(super) fn stored(node: NodeId, group: GroupId, stored: &StoredGroup) -> String {
    let start = match stored.start.index {
        Index(0) => String::new(),
        index => format!(", after {index}:"),
    };
    format!("{} has{}{start}{}", who(node, group), hard_state(stored.hard_state), entries(&stored.entries))
}

pub(super) fn status(node: NodeId, status: &GroupStatus) -> String {
    let role = match status.role {
        _ if status.is_quarantined => "out",
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    };
    let leader = status.leader.map_or("none".to_owned(), |leader| leader.to_string());
    let GroupStatus { group, term, commit, applied, last, end, .. } = status;
    let disk = if status.is_disk_hung { " disk hangs" } else { "" };
    let quiet = if status.is_quiet { " quiet" } else { "" };
    let repair = if status.is_under_repair { " under repair" } else { "" };
    let who = who(node, *group);
    format!(
        "{who} {role} term={term} leader={leader} applied={applied} commit={commit} last={last} end={end}{disk}{quiet}{repair}"
    )
}
