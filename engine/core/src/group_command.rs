//! Commands to a group itself, as they stand in its log: marks that readers and retention leave there.
//!
//! FORMAT.md, "Group commands", has the bytes. They are the data of a normal entry, told from a batch by their
//! first byte. They take no offsets: offsets count users' records alone.
//!
//! Invariants: an entry holds at least one command; what they do is a function of the log before them
//! ([`crate::group_meta`]).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::batch::BATCH_VERSION;
use crate::ids::{Offset, Owner, SessionId, WallTime};

/// First byte of an entry of commands; a batch has its version there.
pub const GROUP_COMMANDS_TAG: u8 = 0x81;
/// Bytes before the first command.
const HEADER_BYTES: usize = 16;
/// Bytes of a command before its name.
const COMMAND_BYTES: usize = 16;
/// Longest name of a cursor, in bytes.
pub const CURSOR_NAME_BYTES_MAX: usize = 64;
/// Commands in one entry at most.
pub const GROUP_COMMANDS_MAX: usize = 1024;

const _: () = assert!(GROUP_COMMANDS_TAG != BATCH_VERSION);

const COMMIT_CURSOR: u8 = 1;
const SET_CURSOR: u8 = 2;
const DROP_CURSOR: u8 = 3;
const TRIM: u8 = 4;
const OPEN_SESSION: u8 = 5;
const CLOSE_SESSION: u8 = 6;
const COMPARE: u8 = 7;

/// Bytes of a session's id and of its owner, in the place of a name.
const SESSION_BYTES: usize = 24;

/// Why bytes are not commands, or a name not one of a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum GroupCommandError {
    /// Shorter or longer than what it says it holds.
    #[error("cut short, or overlong: {bytes} bytes")]
    Length {
        /// Bytes there are.
        bytes: usize,
    },
    /// Not commands, or of a version this build does not read.
    #[error("begins with {tag:#x}, not with {GROUP_COMMANDS_TAG:#x}")]
    Tag {
        /// The byte found.
        tag: u8,
    },
    /// Bits that must be zero are not.
    #[error("reserved bits are set")]
    Reserved,
    /// No command, or more than fit.
    #[error("{count} commands: there must be 1 to {GROUP_COMMANDS_MAX}")]
    Count {
        /// Number of commands.
        count: usize,
    },
    /// A kind of command that this build does not know.
    #[error("unknown kind of command {kind}")]
    Kind {
        /// Its number.
        kind: u8,
    },
    /// A name that is empty or too long, or not that of a session and its owner.
    #[error(
        "a name of {bytes} bytes: a cursor's has 1 to {CURSOR_NAME_BYTES_MAX}, a session's {SESSION_BYTES}"
    )]
    Name {
        /// Its length.
        bytes: usize,
    },
}

/// Name of a consumer's cursor: 1 to [`CURSOR_NAME_BYTES_MAX`] bytes, of any value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Bytes", into = "Bytes"))]
pub struct CursorName(Bytes);

impl CursorName {
    /// Takes bytes as a name.
    ///
    /// # Errors
    /// [`GroupCommandError::Name`] when there are none, or too many.
    pub fn new(name: impl Into<Bytes>) -> Result<CursorName, GroupCommandError> {
        let name = name.into();
        match name.len() {
            1..=CURSOR_NAME_BYTES_MAX => Ok(CursorName(name)),
            bytes => Err(GroupCommandError::Name { bytes }),
        }
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// A copy that keeps nothing else alive: names outlive the frames that they came in.
    #[must_use]
    pub fn detached(&self) -> CursorName {
        CursorName(Bytes::copy_from_slice(&self.0))
    }
}

impl TryFrom<Bytes> for CursorName {
    type Error = GroupCommandError;

    fn try_from(name: Bytes) -> Result<CursorName, GroupCommandError> {
        CursorName::new(name)
    }
}

impl From<CursorName> for Bytes {
    fn from(name: CursorName) -> Bytes {
        name.0
    }
}

impl fmt::Display for CursorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for CursorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A command to a group itself.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GroupCommand {
    /// A consumer has done with everything before an offset. One that lies before where its cursor stands
    /// changes nothing: a late command does not undo a newer one.
    CommitCursor {
        /// The consumer.
        name: CursorName,
        /// First record that it has not done with.
        offset: Offset,
    },
    /// Puts a consumer's cursor somewhere, be it back.
    SetCursor {
        /// The consumer.
        name: CursorName,
        /// First record that it is to go on with.
        offset: Offset,
    },
    /// Forgets a consumer. One that is not known is no error.
    DropCursor {
        /// The consumer.
        name: CursorName,
    },
    /// Records before an offset are no longer kept. It never moves back: a lower one changes nothing.
    Trim {
        /// First record that is kept.
        before: Offset,
    },
    /// Opens a client session; one that its owner has already is touched.
    OpenSession {
        /// Its id.
        session: SessionId,
        /// Whose it is. Whoever takes the command from a client writes it; what the client says does not count.
        owner: Owner,
        /// Time without use after which it expires, in milliseconds of the leaders' clocks. At least 1.
        ttl_ms: u64,
    },
    /// Forgets a client session. One that is not known is no error.
    CloseSession {
        /// Its id.
        session: SessionId,
        /// As above.
        owner: Owner,
    },
    /// Changes nothing: marks a place in the log at which replicas digest their states, so that these can be compared
    /// ([`StateDigest`](crate::StateDigest)).
    Compare,
}

/// The part of a command in front of its name, and the name.
struct Parts<'a> {
    kind: u8,
    number: u64,
    name: Name<'a>,
}

enum Name<'a> {
    Cursor(&'a [u8]),
    Session([u8; SESSION_BYTES]),
}

impl Name<'_> {
    fn session(session: SessionId, owner: Owner) -> Name<'static> {
        let mut name = [0; SESSION_BYTES];
        let (id, rest) = name.split_at_mut(session.0.len());
        id.copy_from_slice(&session.0);
        rest.copy_from_slice(&owner.0.to_le_bytes());
        Name::Session(name)
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Cursor(name) => name,
            Name::Session(name) => name,
        }
    }
}

impl GroupCommand {
    fn parts(&self) -> Parts<'_> {
        let (kind, number, name) = match self {
            GroupCommand::CommitCursor { name, offset } => (COMMIT_CURSOR, offset.0, Name::Cursor(&name.0)),
            GroupCommand::SetCursor { name, offset } => (SET_CURSOR, offset.0, Name::Cursor(&name.0)),
            GroupCommand::DropCursor { name } => (DROP_CURSOR, 0, Name::Cursor(&name.0)),
            GroupCommand::Trim { before } => (TRIM, before.0, Name::Cursor(&[])),
            GroupCommand::OpenSession { session, owner, ttl_ms } => {
                (OPEN_SESSION, *ttl_ms, Name::session(*session, *owner))
            }
            GroupCommand::CloseSession { session, owner } => {
                (CLOSE_SESSION, 0, Name::session(*session, *owner))
            }
            GroupCommand::Compare => (COMPARE, 0, Name::Cursor(&[])),
        };
        Parts { kind, number, name }
    }

    /// The command with another owner, if it is about a session.
    #[must_use]
    pub fn owned_by(self, owner: Owner) -> GroupCommand {
        match self {
            GroupCommand::OpenSession { session, ttl_ms, .. } => {
                GroupCommand::OpenSession { session, owner, ttl_ms }
            }
            GroupCommand::CloseSession { session, .. } => GroupCommand::CloseSession { session, owner },
            other => other,
        }
    }

    /// Whether doing it twice, the second time late, can differ from doing it once.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        matches!(
            self,
            GroupCommand::CommitCursor { .. }
                | GroupCommand::Trim { .. }
                | GroupCommand::CloseSession { .. }
                | GroupCommand::Compare
        )
    }

    /// The command with nothing else kept alive.
    #[must_use]
    pub fn detached(self) -> GroupCommand {
        match self {
            GroupCommand::CommitCursor { name, offset } => {
                GroupCommand::CommitCursor { name: name.detached(), offset }
            }
            GroupCommand::SetCursor { name, offset } => {
                GroupCommand::SetCursor { name: name.detached(), offset }
            }
            GroupCommand::DropCursor { name } => GroupCommand::DropCursor { name: name.detached() },
            GroupCommand::Trim { .. }
            | GroupCommand::OpenSession { .. }
            | GroupCommand::CloseSession { .. }
            | GroupCommand::Compare => self,
        }
    }
}

/// Commands of one entry, with the leader's time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupCommands {
    /// Leader's wall clock when it wrote the entry; as in a batch it never runs backwards within a group.
    pub at: WallTime,
    /// The commands, at least one, in the order in which they count.
    pub commands: Vec<GroupCommand>,
}

impl GroupCommands {
    /// The data of an entry with these commands.
    ///
    /// # Panics
    /// If there is none, or more than [`GROUP_COMMANDS_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let count = self.commands.len();
        assert!((1..=GROUP_COMMANDS_MAX).contains(&count), "{count} commands in an entry");
        let names: usize = self.commands.iter().map(|command| command.parts().name.as_bytes().len()).sum();
        let mut data = BytesMut::with_capacity(HEADER_BYTES + count * COMMAND_BYTES + names);
        data.put_u8(GROUP_COMMANDS_TAG);
        data.put_u8(0);
        data.put_u16_le(count as u16);
        data.put_u32_le(0);
        data.put_u64_le(self.at.0);
        for command in &self.commands {
            put_command(&mut data, command);
        }
        data.freeze()
    }

    /// Reads the data of an entry. Names are slices of it.
    ///
    /// # Errors
    /// [`GroupCommandError`], by what is wrong with it.
    pub fn decode(data: &Bytes) -> Result<GroupCommands, GroupCommandError> {
        let length = GroupCommandError::Length { bytes: data.len() };
        let tag = data.first().copied().ok_or(length)?;
        if tag != GROUP_COMMANDS_TAG {
            return Err(GroupCommandError::Tag { tag });
        }
        let (header, mut rest) = data.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
        let [_, zero, c0, c1, z0, z1, z2, z3, time @ ..] = *header;
        if [zero, z0, z1, z2, z3] != [0; 5] {
            return Err(GroupCommandError::Reserved);
        }
        let count = usize::from(u16::from_le_bytes([c0, c1]));
        if !(1..=GROUP_COMMANDS_MAX).contains(&count) {
            return Err(GroupCommandError::Count { count });
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let (command, left) = take_command(data, rest)?;
            commands.push(command);
            rest = left;
        }
        if !rest.is_empty() {
            return Err(length);
        }
        Ok(GroupCommands { at: WallTime(u64::from_le_bytes(time)), commands })
    }
}

/// One command by itself, as a client sends it.
#[must_use]
pub fn encode_command(command: &GroupCommand) -> Bytes {
    let mut data = BytesMut::with_capacity(COMMAND_BYTES + command.parts().name.as_bytes().len());
    put_command(&mut data, command);
    data.freeze()
}

/// Reads one command, which fills the bytes. Its name is a slice of them.
///
/// # Errors
/// [`GroupCommandError`], by what is wrong with it.
pub fn decode_command(data: &Bytes) -> Result<GroupCommand, GroupCommandError> {
    match take_command(data, data)? {
        (command, []) => Ok(command),
        _ => Err(GroupCommandError::Length { bytes: data.len() }),
    }
}

fn put_command(data: &mut BytesMut, command: &GroupCommand) {
    let Parts { kind, number, name } = command.parts();
    let name = name.as_bytes();
    data.put_u8(kind);
    data.put_u8(name.len() as u8);
    data.put_bytes(0, 6);
    data.put_u64_le(number);
    data.put_slice(name);
}

/// Reads a command from the front of `rest`, which is a part of `data`.
fn take_command<'a>(data: &Bytes, rest: &'a [u8]) -> Result<(GroupCommand, &'a [u8]), GroupCommandError> {
    let length = GroupCommandError::Length { bytes: data.len() };
    let (fixed, rest) = rest.split_first_chunk::<COMMAND_BYTES>().ok_or(length)?;
    let [kind, name_bytes, z0, z1, z2, z3, z4, z5, number @ ..] = *fixed;
    let number = u64::from_le_bytes(number);
    let offset = Offset(number);
    let (name, rest) = rest.split_at_checked(usize::from(name_bytes)).ok_or(length)?;
    let session = || {
        let (id, owner) = name.split_first_chunk().ok_or(GroupCommandError::Name { bytes: name.len() })?;
        let owner = owner.try_into().map_err(|_| GroupCommandError::Name { bytes: name.len() })?;
        Ok((SessionId(*id), Owner(u64::from_le_bytes(owner))))
    };
    let named = || CursorName::new(data.slice_ref(name));
    if [z0, z1, z2, z3, z4, z5] != [0; 6] {
        return Err(GroupCommandError::Reserved);
    }
    let command = match kind {
        COMMIT_CURSOR => GroupCommand::CommitCursor { name: named()?, offset },
        SET_CURSOR => GroupCommand::SetCursor { name: named()?, offset },
        DROP_CURSOR if offset.0 == 0 => GroupCommand::DropCursor { name: named()? },
        TRIM if name.is_empty() => GroupCommand::Trim { before: offset },
        OPEN_SESSION if number > 0 => {
            let (session, owner) = session()?;
            GroupCommand::OpenSession { session, owner, ttl_ms: number }
        }
        CLOSE_SESSION if number == 0 => {
            let (session, owner) = session()?;
            GroupCommand::CloseSession { session, owner }
        }
        COMPARE if name.is_empty() && number == 0 => GroupCommand::Compare,
        DROP_CURSOR | TRIM | COMPARE | OPEN_SESSION | CLOSE_SESSION => {
            return Err(GroupCommandError::Reserved);
        }
        kind => return Err(GroupCommandError::Kind { kind }),
    };
    Ok((command, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> GroupCommands {
        let name = |text: &'static str| CursorName::new(text).unwrap();
        let commands = vec![
            GroupCommand::CommitCursor { name: name("a"), offset: Offset(7) },
            GroupCommand::SetCursor { name: name("b"), offset: Offset(u64::MAX) },
            GroupCommand::DropCursor { name: CursorName::new(vec![b'c'; CURSOR_NAME_BYTES_MAX]).unwrap() },
            GroupCommand::Trim { before: Offset(3) },
            GroupCommand::OpenSession { session: SessionId([5; 16]), owner: Owner(6), ttl_ms: 7 },
            GroupCommand::CloseSession { session: SessionId([5; 16]), owner: Owner(u64::MAX) },
            GroupCommand::Compare,
        ];
        GroupCommands { at: WallTime(99), commands }
    }

    #[test]
    fn commands_are_read_as_they_were_written() {
        let data = all().encode();
        assert_eq!(GroupCommands::decode(&data), Ok(all()));
        for command in all().commands {
            assert_eq!(decode_command(&encode_command(&command)), Ok(command));
        }
    }

    #[test]
    fn every_cut_of_them_is_an_error() {
        let data = all().encode();
        for cut in 0..data.len() {
            assert!(GroupCommands::decode(&data.slice(..cut)).is_err(), "cut at {cut}");
        }
        let long = [&data[..], &[0]].concat();
        assert_eq!(
            GroupCommands::decode(&long.into()),
            Err(GroupCommandError::Length { bytes: data.len() + 1 })
        );
    }

    #[test]
    fn a_byte_that_must_be_zero_is_no_other() {
        let data = all().encode();
        for at in [1, 4, 7, 18, 23] {
            let mut bytes = data.to_vec();
            bytes[at] = 1;
            assert_eq!(GroupCommands::decode(&bytes.into()), Err(GroupCommandError::Reserved), "byte {at}");
        }
    }

    #[test]
    fn names_have_a_length() {
        assert_eq!(CursorName::new(""), Err(GroupCommandError::Name { bytes: 0 }));
        let long = vec![b'x'; CURSOR_NAME_BYTES_MAX + 1];
        assert_eq!(CursorName::new(long), Err(GroupCommandError::Name { bytes: CURSOR_NAME_BYTES_MAX + 1 }));
    }
}
