//! Messages and entries as scripts write them: what a trace prints, `inject` takes.

use bytes::Bytes;
use iroh_raft_core::batch::{Batch, RecordBlock, encode_batch};
use iroh_raft_core::group_command::GroupCommands;
use iroh_raft_core::{
    ConfState, CursorName, EntryKind, GroupCommand, GroupId, Index, LogEntry, MemberChange, MemberRole,
    MessageKind, NodeId, Offset, Owner, PeerMessage, SessionId, Term, WallTime, decode_change,
    decode_members, decode_recovery,
};

/// Longer records of one byte are printed as that byte and how often it stands there.
const PLAIN_RECORD_BYTES_MAX: usize = 8;

/// What vote requests carry when the leader asked for the campaign (thesis 3.10).
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

fn kind_name(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Append => "append",
        MessageKind::AppendResponse => "append-response",
        MessageKind::RequestVote => "vote",
        MessageKind::RequestVoteResponse => "vote-response",
        MessageKind::RequestPreVote => "pre-vote",
        MessageKind::RequestPreVoteResponse => "pre-vote-response",
        MessageKind::Heartbeat => "heartbeat",
        MessageKind::HeartbeatResponse => "heartbeat-response",
        MessageKind::TimeoutNow => "campaign-now",
        MessageKind::ReadIndex => "read-index",
        MessageKind::ReadIndexResponse => "read-index-response",
        MessageKind::Snapshot => "snapshot",
        MessageKind::Beat => "beat",
        MessageKind::SnapshotChunk => "snapshot-chunk",
        MessageKind::SnapshotAck => "snapshot-ack",
        MessageKind::Invite => "invite",
        MessageKind::Gone => "gone",
        MessageKind::MayLeave => "may-leave",
        MessageKind::RepairQuestion => "repair-question",
        MessageKind::RepairBound => "repair-bound",
    }
}

/// A message without its sender, receiver and group. Fields that are 0 are left out.
pub(super) fn print_message(message: &PeerMessage) -> String {
    if message.kind == MessageKind::Beat {
        // The number of the sender's life is drawn: which one it is says nothing.
        let shards = match (message.term.0 >> 16, message.term.0 & 0xffff) {
            (0, 0) => String::new(),
            (from, to) => format!(" shards={from}->{to}"),
        };
        return format!("beat withdrawals={}{shards}", message.commit);
    }
    let mut text = format!("{} term={}", kind_name(message.kind), message.term);
    let mut say = |what: String| {
        text.push(' ');
        text.push_str(&what);
    };
    let is_answer = is_answer(message.kind);
    if matches!(message.kind, MessageKind::AppendResponse | MessageKind::ReadIndexResponse) {
        say(format!("index={}", message.index));
    } else if !is_answer
        && !matches!(message.kind, MessageKind::Heartbeat | MessageKind::TimeoutNow | MessageKind::ReadIndex)
    {
        say(format!("after={}/{}", message.index, message.log_term));
    }
    if message.commit > Index(0) {
        say(format!("commit={}", message.commit));
    }
    if message.commit_term > Term(0) {
        say(format!("commit_term={}", message.commit_term));
    }
    if matches!(message.kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse)
        && message.index > Index(0)
    {
        say(format!("quiet={}", message.index));
    }
    match message.kind {
        MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse if !message.reject => {
            say("granted".to_owned());
        }
        MessageKind::AppendResponse if message.reject => {
            say(format!("reject hint={}/{}", message.reject_hint, message.log_term));
        }
        _ if message.reject => say("reject".to_owned()),
        _ => {}
    }
    // Chunk numbers stand first in what chunks and their answers carry.
    let first = message.context.first_chunk().map_or(0, |number| u32::from_le_bytes(*number));
    match message.kind {
        MessageKind::SnapshotChunk => say(format!("chunk={first}")),
        MessageKind::SnapshotAck => say(format!("chunks={first}")),
        _ => {}
    }
    // When a heartbeat was sent stands before the context of a read.
    let is_stamped = matches!(message.context.len(), 16 | 40);
    let word = |at: usize| -> Option<u64> {
        let bytes = message.context.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    };
    if message.context == CAMPAIGN_TRANSFER {
        say("transfer".to_owned());
    } else {
        if let Some(sent) = word(0).filter(|_| is_stamped) {
            say(format!("sent={}ms", sent / 1_000_000));
        }
        let has_round = !matches!(message.kind, MessageKind::Snapshot | MessageKind::SnapshotChunk);
        if let Some(round) = word(if is_stamped { 24 } else { 8 }).filter(|_| has_round) {
            say(format!("round={round}"));
        }
    }
    for entry in &message.entries {
        match message.kind {
            MessageKind::Invite => {
                let members = decode_members(&entry.data).expect("the shard names members");
                say(format!("[{}]", print_members(&members)));
            }
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => say(print_round(&entry.data)),
            MessageKind::Snapshot | MessageKind::SnapshotChunk => say(format!("{} bytes", entry.data.len())),
            _ => say(print_entry(entry)),
        }
    }
    text
}

/// The name of a forwarded read: its reader, and the reader's number of it.
fn print_round(context: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(context[at..at + 8].try_into().expect("eight bytes"));
    format!("reader={} round={}", word(0), word(8))
}

fn is_answer(kind: MessageKind) -> bool {
    matches!(
        kind,
        MessageKind::AppendResponse
            | MessageKind::RequestVoteResponse
            | MessageKind::RequestPreVoteResponse
            | MessageKind::HeartbeatResponse
            | MessageKind::ReadIndexResponse
    )
}

/// `index/term[base:record,record]`; an entry without records has empty brackets.
pub(super) fn print_entry(entry: &LogEntry) -> String {
    let place = format!("{}/{}", entry.index, entry.term);
    if entry.kind != EntryKind::Normal {
        if entry.data.ends_with(b"remove group") {
            return format!("{place}[remove group]");
        }
        if let Some(survivor) = decode_recovery(&entry.data) {
            return format!("{place}[recovered: {survivor} alone]");
        }
        let changes = decode_change(&entry.data).expect("the shard hands out sound changes");
        let changes: Vec<String> = changes.iter().map(print_change).collect();
        return format!(
            "{place}[members{}]",
            if changes.is_empty() { " settle".into() } else { changes.concat() }
        );
    }
    if entry.data.is_empty() {
        return format!("{place}[]");
    }
    if let Some(data) = entry.group_commands() {
        let commands = GroupCommands::decode(data).expect("the shard hands out sound commands").commands;
        let commands: Vec<String> = commands.iter().map(print_command).collect();
        return format!("{place}[{}]", commands.join(", "));
    }
    let batch = Batch::parse(&entry.data).expect("the shard hands out sound batches");
    let records: Vec<String> = batch.records().map(|(_, record)| print_record(record)).collect();
    let runs = batch.runs().map(|run| format!(" {}@{}+{}", print_session(run.session), run.first, run.count));
    format!("{place}[{}:{}{}]", batch.base(), records.join(","), runs.collect::<String>())
}

/// The name of a session: its bytes up to the first zero.
fn print_session(session: SessionId) -> String {
    let name = session.0.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

pub(super) fn parse_session(name: &str) -> Result<SessionId, String> {
    let mut session = SessionId::default();
    let place = session.0.get_mut(..name.len()).ok_or("a session's name has 16 letters at most")?;
    place.copy_from_slice(name.as_bytes());
    Ok(session)
}

/// `commit a 5`, `set a 5`, `drop a`, `trim 5`, `open s 60000` or `close s`.
fn print_command(command: &GroupCommand) -> String {
    match command {
        GroupCommand::CommitCursor { name, offset } => format!("commit {name} {offset}"),
        GroupCommand::SetCursor { name, offset } => format!("set {name} {offset}"),
        GroupCommand::DropCursor { name } => format!("drop {name}"),
        GroupCommand::Trim { before } => format!("trim {before}"),
        GroupCommand::OpenSession { session, ttl_ms, .. } => {
            format!("open {} {ttl_ms}", print_session(*session))
        }
        GroupCommand::CloseSession { session, .. } => format!("close {}", print_session(*session)),
        GroupCommand::Compare => "compare".to_owned(),
    }
}

pub(super) fn parse_command(words: &[&str]) -> Result<GroupCommand, String> {
    let name = |word: &str| CursorName::new(word.to_owned()).map_err(|error| error.to_string());
    let offset = |word: &str| parse_number(word).map(Offset);
    match words {
        ["commit", of, at] => Ok(GroupCommand::CommitCursor { name: name(of)?, offset: offset(at)? }),
        ["set", of, at] => Ok(GroupCommand::SetCursor { name: name(of)?, offset: offset(at)? }),
        ["drop", of] => Ok(GroupCommand::DropCursor { name: name(of)? }),
        ["trim", at] => Ok(GroupCommand::Trim { before: offset(at)? }),
        ["open", of, ttl_ms] => {
            let (session, ttl_ms) = (parse_session(of)?, parse_number(ttl_ms)?);
            Ok(GroupCommand::OpenSession { session, owner: Owner(0), ttl_ms })
        }
        ["close", of] => Ok(GroupCommand::CloseSession { session: parse_session(of)?, owner: Owner(0) }),
        ["compare"] => Ok(GroupCommand::Compare),
        _ => Err("commit NAME OFFSET, set NAME OFFSET, drop NAME, trim OFFSET, open NAME MS or close NAME"
            .to_owned()),
    }
}

/// ` +4`, ` ~4` or ` -4`: a voter, a learner, gone.
fn print_change(change: &MemberChange) -> String {
    let sign = match change.role {
        MemberRole::Voter => '+',
        MemberRole::Learner => '~',
        MemberRole::Gone => '-',
    };
    format!(" {sign}{}", change.node)
}

pub(super) fn parse_change(word: &str) -> Result<MemberChange, String> {
    let (sign, node) = word.split_at_checked(1).ok_or("a sign and a node")?;
    let role = match sign {
        "+" => MemberRole::Voter,
        "~" => MemberRole::Learner,
        "-" => MemberRole::Gone,
        _ => return Err(format!("{word:?} is not a change: +4 a voter, ~4 a learner, -4 gone")),
    };
    Ok(MemberChange { node: NodeId(parse_number(node)?), role })
}

/// `voters 1 2 3`, then what else there is.
pub(super) fn print_members(members: &ConfState) -> String {
    let list = |name: &str, nodes: &[NodeId]| {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        if nodes.is_empty() { String::new() } else { format!(" {name} {}", nodes.join(" ")) }
    };
    let ConfState { voters, learners, voters_outgoing, learners_next, .. } = members;
    let lists = [
        list("voters", voters),
        list("outgoing", voters_outgoing),
        list("learners", learners),
        list("learners-to-be", learners_next),
    ];
    lists.concat().trim_start().to_owned()
}

pub(super) fn print_record(record: &[u8]) -> String {
    let text = String::from_utf8_lossy(record);
    let is_long = record.len() > PLAIN_RECORD_BYTES_MAX;
    match text.chars().next().filter(|first| is_long && text.chars().all(|other| other == *first)) {
        Some(first) => format!("{first}*{}", record.len()),
        None => text.into_owned(),
    }
}

/// A record as written in a script: plain text, or `x*100` for a hundred times x.
pub(super) fn parse_record(word: &str) -> Result<Vec<u8>, String> {
    match word.split_once('*') {
        Some((text, times)) => Ok(text.repeat(parse_number(times)?).into_bytes()),
        None => Ok(word.as_bytes().to_vec()),
    }
}

pub(super) fn parse_number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

/// `7/2`: index and term.
fn parse_place(word: &str) -> Result<(Index, Term), String> {
    let (index, term) = word.split_once('/').ok_or_else(|| format!("{word:?} is not index/term"))?;
    Ok((Index(parse_number(index)?), Term(parse_number(term)?)))
}

fn parse_entry(word: &str) -> Result<LogEntry, String> {
    let wrong = || format!("{word:?} is not index/term[base:record,...]");
    let (place, records) = word.strip_suffix(']').and_then(|word| word.split_once('[')).ok_or_else(wrong)?;
    let (index, term) = parse_place(place)?;
    let data = if records.is_empty() {
        Bytes::new()
    } else {
        let (base, records) = records.split_once(':').ok_or_else(wrong)?;
        let records: Vec<Vec<u8>> = records.split(',').map(parse_record).collect::<Result<_, _>>()?;
        let block = RecordBlock::from_records(&records);
        encode_batch(Offset(parse_number(base)?), WallTime(0), [block].iter())
    };
    Ok(LogEntry { index, term, kind: EntryKind::Normal, data })
}

/// A forged message, from the words that [`print_message`] would print.
pub(super) fn parse_message(
    group: GroupId,
    (from, to): (NodeId, NodeId),
    words: &[&str],
) -> Result<PeerMessage, String> {
    let (name, fields) = words.split_first().ok_or("a message has a kind")?;
    let kind = MessageKind::ALL.into_iter().find(|kind| kind_name(*kind) == *name);
    let mut message = PeerMessage {
        kind: kind.ok_or_else(|| format!("{name:?} is not a kind of message"))?,
        group,
        from,
        to,
        term: Term(0),
        log_term: Term(0),
        index: Index(0),
        commit: Index(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
    };
    for field in fields {
        parse_field(&mut message, field)?;
    }
    Ok(message)
}

fn parse_field(message: &mut PeerMessage, field: &str) -> Result<(), String> {
    match field.split_once('=') {
        _ if field.ends_with(']') => message.entries.push(parse_entry(field)?),
        Some(("shards", value)) => {
            let (from, to) = value.split_once("->").ok_or("two shards, like 0->1")?;
            message.term = Term(parse_number::<u64>(from)? << 16 | parse_number::<u64>(to)?);
        }
        Some(("term", value)) => message.term = Term(parse_number(value)?),
        Some(("index" | "quiet", value)) => message.index = Index(parse_number(value)?),
        Some(("after", value)) => (message.index, message.log_term) = parse_place(value)?,
        Some(("commit", value)) => message.commit = Index(parse_number(value)?),
        Some(("commit_term", value)) => message.commit_term = Term(parse_number(value)?),
        Some(("hint", value)) => (message.reject_hint, message.log_term) = parse_place(value)?,
        None if field == "reject" => message.reject = true,
        None if field == "granted" => message.reject = false,
        None if field == "transfer" => message.context = Bytes::from_static(CAMPAIGN_TRANSFER),
        _ => return Err(format!("{field:?} is not a field of a message")),
    }
    Ok(())
}
