//! What a group knows besides its records: where its kept records begin, the cursors of its consumers, and the sessions of
//! its clients.
//!
//! It is a function of the committed log: each replica applies the commands in it ([`crate::group_command`]) and the runs of
//! client sessions ([`crate::batch`]) in order. It becomes durable together with the commit index that it is of, in one
//! flush, so a start has both or neither. Only a table that has sessions, which would be written with every flush, may be
//! older than the commit index: by a bounded piece of the log, which a start reads again. A snapshot carries it as
//! well, perhaps as of a later entry than the snapshot's index: the table says which was its last, and what is in entries up
//! to that one changes nothing. FORMAT.md, "Group meta", has the bytes.
//!
//! Bounded: [`CURSORS_MAX`] cursors, [`SESSIONS_MAX`](crate::SESSIONS_MAX) sessions; a command that would make another is refused, the same on all replicas.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::batch::Batch;
use crate::group_command::{CURSOR_NAME_BYTES_MAX, CursorName, GroupCommand, GroupCommands};
use crate::ids::{Index, Offset, Owner, Sequence, SessionId, Term, WallTime};
use crate::mutants::{self, Mutant};
use crate::sessions::{Opened, RunOutcome, SESSIONS_BYTES_MAX, SessionRefusal, Sessions};

/// Versions of the layout: without sessions, and with some.
const WITHOUT_SESSIONS: u16 = 1;
const WITH_SESSIONS: u16 = 2;
const HEADER_BYTES: usize = 32;
const CURSOR_BYTES: usize = 9;
/// Cursors that a group has at most.
pub const CURSORS_MAX: usize = 1024;
/// Bytes of an encoded table at most.
pub const GROUP_META_BYTES_MAX: usize =
    HEADER_BYTES + CURSORS_MAX * (CURSOR_BYTES + CURSOR_NAME_BYTES_MAX) + SESSIONS_BYTES_MAX;

/// What became of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum GroupOutcome {
    /// It is done: where the cursor stands now, `None` for one that is gone; for a trim the first record kept.
    Done(Option<Offset>),
    /// The place is marked: what the table is now is a part of the state that is compared there.
    Marked,
    /// There are [`CURSORS_MAX`] cursors already.
    CursorsFull,
    /// There are [`SESSIONS_MAX`](crate::SESSIONS_MAX) sessions already.
    SessionsFull,
    /// The session is another client's.
    SessionUnknown,
}

/// The table of one group. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GroupMeta {
    as_of: Index,
    first: Offset,
    at: WallTime,
    cursors: BTreeMap<CursorName, Offset>,
    sessions: Sessions,
}

impl GroupMeta {
    /// The newest entry whose commands, or runs of sessions, are in it; 0 before the first. A table with sessions that was
    /// read from the disk may name a later one: nothing up to that is missing in it.
    #[must_use]
    pub fn as_of(&self) -> Index {
        self.as_of
    }

    /// First record that is kept. Never falls.
    #[must_use]
    pub fn first(&self) -> Offset {
        self.first
    }

    /// A leader's time: that of the newest command, or of the newest batch that a snapshot covers; no batch before is later.
    #[must_use]
    pub fn at(&self) -> WallTime {
        self.at
    }

    /// The table with a time that no batch before is later than: a snapshot takes the place of these.
    #[must_use]
    pub(crate) fn with_time(&self, at: WallTime) -> GroupMeta {
        GroupMeta { at: self.at.max(at), ..self.clone() }
    }

    /// First record that a consumer has not done with; `None` when it has no cursor.
    #[must_use]
    pub fn cursor(&self, name: &CursorName) -> Option<Offset> {
        self.cursors.get(name).copied()
    }

    /// All cursors, in order of name.
    pub fn cursors(&self) -> impl Iterator<Item = (&CursorName, Offset)> {
        self.cursors.iter().map(|(name, offset)| (name, *offset))
    }

    /// What became of a record of a client's session, as far as the committed log goes, at a leader's time.
    ///
    /// # Errors
    /// [`SessionRefusal::Unknown`].
    pub fn outcome(
        &self,
        session: SessionId,
        owner: Owner,
        sequence: Sequence,
        at: WallTime,
    ) -> Result<RunOutcome, SessionRefusal> {
        self.sessions.outcome(session, owner, sequence, (at, Index(u64::MAX)))
    }

    /// The sessions of clients, each with its next sequence, in order of id. One that has expired stays until another one is
    /// opened.
    pub fn open_sessions(&self) -> impl Iterator<Item = (SessionId, Sequence)> {
        self.sessions.iter()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The same, which is known to have everything up to an entry: what a start that has sessions need not read again.
    #[must_use]
    pub(crate) fn covering(self, index: Index) -> GroupMeta {
        let is_wanted = !self.sessions.is_empty();
        GroupMeta { as_of: if is_wanted { self.as_of.max(index) } else { self.as_of }, ..self }
    }

    /// CRC-32C of what all replicas have alike once they have applied the same. Not of the time: that is no more than a bound, and
    /// one that came with a snapshot may be of a batch after it.
    pub(crate) fn digest(&self) -> u32 {
        crc32c::crc32c(&GroupMeta { at: WallTime(0), ..self.clone() }.encode())
    }

    /// The same without sessions: what a snapshot must not be.
    pub(crate) fn without_sessions(self) -> GroupMeta {
        GroupMeta { sessions: Sessions::default(), ..self }
    }

    /// Takes the runs of sessions in the next batch that has some.
    pub fn apply_runs(&mut self, index: Index, term: Term, batch: &Batch<'_>) {
        self.as_of = index;
        self.at = self.at.max(batch.at());
        self.sessions.append_batch(index, term, batch);
    }

    /// Applies the commands of the next entry that has some, in order.
    pub fn apply(&mut self, index: Index, entry: &GroupCommands) -> Vec<GroupOutcome> {
        self.as_of = index;
        self.at = self.at.max(entry.at);
        entry.commands.iter().map(|command| self.apply_one(command, entry.at)).collect()
    }

    fn apply_one(&mut self, command: &GroupCommand, at: WallTime) -> GroupOutcome {
        match command {
            GroupCommand::CommitCursor { name, offset } => {
                let before = self.cursor(name).filter(|_| !mutants::is(Mutant::CursorGoesBack));
                self.put(name, before.unwrap_or_default().max(*offset))
            }
            GroupCommand::SetCursor { name, offset } => self.put(name, *offset),
            GroupCommand::DropCursor { name } => {
                self.cursors.remove(name);
                GroupOutcome::Done(None)
            }
            GroupCommand::Trim { before } => {
                self.first = self.first.max(*before);
                GroupOutcome::Done(Some(self.first))
            }
            GroupCommand::OpenSession { .. } | GroupCommand::CloseSession { .. } => {
                match self.sessions.apply(command, at) {
                    Opened::Done => GroupOutcome::Done(None),
                    Opened::Full => GroupOutcome::SessionsFull,
                    Opened::Unknown => GroupOutcome::SessionUnknown,
                }
            }
            GroupCommand::Compare => GroupOutcome::Marked,
        }
    }

    fn put(&mut self, name: &CursorName, offset: Offset) -> GroupOutcome {
        if self.cursors.len() >= CURSORS_MAX && !self.cursors.contains_key(name) {
            return GroupOutcome::CursorsFull;
        }
        self.cursors.insert(name.detached(), offset);
        GroupOutcome::Done(Some(offset))
    }

    /// The table as it is stored and sent. Empty bytes stand for the table of a new group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let names: usize = self.cursors.keys().map(|name| name.as_bytes().len()).sum();
        let mut data = BytesMut::with_capacity(
            HEADER_BYTES + self.cursors.len() * CURSOR_BYTES + names + self.sessions.encoded_bytes(),
        );
        data.put_u16_le(if self.sessions.is_empty() { WITHOUT_SESSIONS } else { WITH_SESSIONS });
        data.put_u16_le(0);
        data.put_u32_le(self.cursors.len() as u32);
        data.put_u64_le(self.as_of.0);
        data.put_u64_le(self.first.0);
        data.put_u64_le(self.at.0);
        for (name, offset) in &self.cursors {
            data.put_u64_le(offset.0);
            data.put_u8(name.as_bytes().len() as u8);
            data.put_slice(name.as_bytes());
        }
        if !self.sessions.is_empty() {
            self.sessions.encode(&mut data);
        }
        data.freeze()
    }

    /// Reads a table; `None` when the bytes are not what [`encode`](GroupMeta::encode) writes.
    #[must_use]
    pub fn decode(mut data: Bytes) -> Option<GroupMeta> {
        if data.is_empty() {
            return Some(GroupMeta::default());
        }
        let (version, reserved) = (data.try_get_u16_le().ok()?, data.try_get_u16_le().ok()?);
        let count = data.try_get_u32_le().ok()? as usize;
        let as_of = Index(data.try_get_u64_le().ok()?);
        let (first, at) = (Offset(data.try_get_u64_le().ok()?), WallTime(data.try_get_u64_le().ok()?));
        if !(WITHOUT_SESSIONS..=WITH_SESSIONS).contains(&version) || reserved != 0 || count > CURSORS_MAX {
            return None;
        }
        let mut cursors = BTreeMap::new();
        for _ in 0..count {
            let offset = Offset(data.try_get_u64_le().ok()?);
            let bytes = usize::from(data.try_get_u8().ok()?);
            if bytes > data.remaining() {
                return None;
            }
            let name = CursorName::new(data.split_to(bytes)).ok()?.detached();
            // In order, each once: a table has one encoding.
            if cursors.last_key_value().is_some_and(|(before, _)| *before >= name) {
                return None;
            }
            cursors.insert(name, offset);
        }
        let sessions =
            if version == WITH_SESSIONS { Sessions::decode(&mut data)? } else { Sessions::default() };
        data.is_empty().then_some(GroupMeta { as_of, first, at, cursors, sessions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> CursorName {
        CursorName::new(format!("consumer {number}")).unwrap()
    }

    fn apply(meta: &mut GroupMeta, command: GroupCommand) -> GroupOutcome {
        let next = meta.as_of().next();
        meta.apply(next, &GroupCommands { at: WallTime(5), commands: vec![command] })[0]
    }

    #[test]
    fn a_cursor_goes_back_only_when_it_is_set() {
        let mut meta = GroupMeta::default();
        let commit = |offset| GroupCommand::CommitCursor { name: name(1), offset: Offset(offset) };
        let set = GroupCommand::SetCursor { name: name(1), offset: Offset(2) };
        assert_eq!(apply(&mut meta, commit(9)), GroupOutcome::Done(Some(Offset(9))));
        assert_eq!(apply(&mut meta, commit(4)), GroupOutcome::Done(Some(Offset(9))));
        assert_eq!(apply(&mut meta, set), GroupOutcome::Done(Some(Offset(2))));
        assert_eq!(apply(&mut meta, GroupCommand::DropCursor { name: name(1) }), GroupOutcome::Done(None));
        assert_eq!(meta.cursor(&name(1)), None);
    }

    #[test]
    fn kept_records_never_begin_earlier_again() {
        let mut meta = GroupMeta::default();
        apply(&mut meta, GroupCommand::Trim { before: Offset(9) });
        let outcome = apply(&mut meta, GroupCommand::Trim { before: Offset(4) });
        assert_eq!((outcome, meta.first()), (GroupOutcome::Done(Some(Offset(9))), Offset(9)));
    }

    #[test]
    fn a_full_table_takes_no_other_consumer() {
        let mut meta = GroupMeta::default();
        let commit = |number| GroupCommand::CommitCursor { name: name(number), offset: Offset(1) };
        for number in 0..CURSORS_MAX {
            assert_eq!(apply(&mut meta, commit(number)), GroupOutcome::Done(Some(Offset(1))));
        }
        assert_eq!(apply(&mut meta, commit(CURSORS_MAX)), GroupOutcome::CursorsFull);
        assert_eq!(apply(&mut meta, commit(0)), GroupOutcome::Done(Some(Offset(1))));
        let data = meta.encode();
        assert!(data.len() <= GROUP_META_BYTES_MAX);
        assert_eq!(GroupMeta::decode(data), Some(meta));
    }

    #[test]
    fn every_cut_of_a_table_is_refused() {
        let mut meta = GroupMeta::default();
        (0..3).for_each(|number| {
            apply(&mut meta, GroupCommand::SetCursor { name: name(number), offset: Offset(7) });
        });
        let data = meta.encode();
        for cut in 1..data.len() {
            assert_eq!(GroupMeta::decode(data.slice(..cut)), None, "cut at {cut}");
        }
        assert_eq!(GroupMeta::decode([&data[..], &[0]].concat().into()), None);
    }
}
