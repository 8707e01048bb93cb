use bytes::Bytes;
use proptest::prelude::*;

use iroh_raft_core::{Append, LogEntry};

use super::*;

const IDENTITY: JournalIdentity = JournalIdentity { storage: [9; 16], shard: ShardId(2) };
const PREVIOUS: ChainEnd = ChainEnd { seq: FlushSeq(6), checksum: 77 };

/// A block of these flushes: header and directory, data, and the chain's end.
fn encode(batch: &[Append]) -> (Vec<u8>, Vec<u8>, ChainEnd) {
    let parts = batch.iter().flat_map(|append| &append.groups).enumerate();
    let new = |(number, append)| NewPart { append, base: Offset(5), is_carried: number % 2 == 1 };
    let parts: Vec<_> = parts.map(new).collect();
    let last = batch.last().unwrap().seq;
    let block = NewBlock { identity: IDENTITY, previous: PREVIOUS, last, oldest: FlushSeq(3), parts: &parts };
    let mut directory = vec![0xee; 7];
    let end = block.encode_directory(&mut directory);
    (directory, block.data().flatten().copied().collect(), end)
}

/// What the parts of a block say, in the form in which they went in.
fn decode(directory: &[u8], data: &[u8]) -> Result<Vec<GroupAppend>, BlockError> {
    let block = Block::parse(directory, IDENTITY)?;
    assert_eq!(block.before(), PREVIOUS);
    let bytes = [directory, data].concat();
    let mut number = 0;
    let part = |part: Result<Part<'_>, BlockError>| {
        let part = part?;
        assert_eq!((part.base, part.is_carried), (Offset(5), number % 2 == 1));
        number += 1;
        let again = block.part_at(part.place)?;
        assert_eq!((again.group, again.first, again.count), (part.group, part.first, part.count));
        let data = &bytes[part.data_range()];
        if !part.is_data(std::iter::once(data)) {
            return Err(BlockError::Checksum);
        }
        let entry = |entry: EntryView<'_>| LogEntry {
            index: entry.index,
            term: entry.term,
            kind: entry.kind,
            data: Bytes::copy_from_slice(entry.data),
        };
        Ok(GroupAppend {
            group: part.group,
            change: part.change,
            hard_state: part.hard_state,
            conf_state: part.conf_state.clone(),
            meta: part.meta.map(Bytes::copy_from_slice),
            under_repair: part.under_repair,
            joined_at: part.joined_at,
            entries: part.entries(data).map(entry).collect(),
        })
    };
    block.parts().map(part).collect()
}

fn change() -> impl Strategy<Value = LogChange> {
    let start = (any::<u64>(), any::<u64>(), any::<u64>());
    let start = start.prop_map(|(index, term, offset)| LogStart {
        index: Index(index),
        term: Term(term),
        offset: Offset(offset),
    });
    prop_oneof![
        start.clone().prop_map(LogChange::CompactTo),
        start.prop_map(LogChange::StartAfter),
        Just(LogChange::Remove)
    ]
}

fn nodes() -> impl Strategy<Value = Vec<NodeId>> {
    prop::collection::vec(any::<u64>().prop_map(NodeId), 0..4)
}

fn group_append() -> impl Strategy<Value = GroupAppend> {
    let hard_state = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, vote, commit)| HardState {
        term: Term(term),
        vote: NodeId(vote),
        commit: Index(commit),
    });
    let conf_state = (nodes(), nodes(), nodes(), nodes(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        },
    );
    let data = prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let entry = (0_u8..3, 0_u64..3, data);
    let entries = (1_u64..1 << 60, prop::collection::vec(entry, 0..5)).prop_map(|(first, entries)| {
        let mut term = 1;
        (first..)
            .zip(entries)
            .map(|(index, (kind, rise, data))| {
                term += rise;
                let kind = EntryKind::from_u8(kind).unwrap();
                LogEntry { index: Index(index), term: Term(term), kind, data }
            })
            .collect()
    });
    let meta = prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from));
    let states = (prop::option::of(change()), prop::option::of(hard_state), prop::option::of(conf_state));
    let joined_at = prop::option::of((any::<u64>(), any::<u64>()));
    (any::<u64>(), states, any::<Option<bool>>(), joined_at, meta, entries).prop_map(
        |(group, (change, hard_state, conf_state), under_repair, joined_at, meta, entries)| GroupAppend {
            group: GroupId(group),
            change,
            hard_state,
            conf_state,
            meta,
            under_repair,
            joined_at: joined_at.map(|(term, index)| LogPosition { term: Term(term), index: Index(index) }),
            entries,
        },
    )
}

fn batch() -> impl Strategy<Value = Vec<Append>> {
    prop::collection::vec(prop::collection::vec(group_append(), 0..4), 1..4).prop_map(|flushes| {
        (7..).zip(flushes).map(|(seq, groups)| Append { seq: FlushSeq(seq), groups }).collect()
    })
}

proptest! {
    #[test]
    fn a_block_gives_back_what_went_in(batch in batch()) {
        let (directory, data, end) = encode(&batch);
        let parts: Vec<_> = batch.iter().flat_map(|append| append.groups.clone()).collect();
        prop_assert_eq!(decode(&directory, &data).unwrap(), parts);
        let block = Block::parse(&directory, IDENTITY).unwrap();
        prop_assert_eq!((block.end(), block.oldest()), (end, FlushSeq(3)));
        let lengths = BlockLengths::peek(&directory).unwrap();
        prop_assert_eq!((lengths.directory, lengths.data), (directory.len(), data.len()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error(batch in batch(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let (mut directory, mut data, _) = encode(&batch);
        let at = at.index(directory.len() + data.len());
        let length = directory.len();
        match at.checked_sub(length) {
            None => {
                prop_assert!(Block::parse(&directory[..at], IDENTITY).is_err());
                directory[at] ^= 1_u8 << bit;
                prop_assert!(Block::parse(&directory, IDENTITY).is_err());
            }
            // Damaged data concerns its part alone, which is told from the others.
            Some(at) => {
                data[at] ^= 1_u8 << bit;
                prop_assert_eq!(decode(&directory, &data).unwrap_err(), BlockError::Checksum);
                let block = Block::parse(&directory, IDENTITY).unwrap();
                let bytes = [directory.as_slice(), data.as_slice()].concat();
                let is_bad = |part: &Part<'_>| !part.is_data(std::iter::once(&bytes[part.data_range()]));
                prop_assert_eq!(block.parts().flatten().filter(is_bad).count(), 1);
            }
        }
    }

    /// The checksum is no proof against malice: content that makes no sense must not panic.
    #[test]
    fn sealed_nonsense_never_panics(batch in batch(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (mut directory, data, _) = encode(&batch);
        for (at, value) in changes {
            let at = at.index(directory.len());
            directory[at] = value;
        }
        let checksum = checksum_of(&directory);
        directory[CHECKSUM_AT..BLOCK_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(block) = Block::parse(&directory, IDENTITY) {
            let bytes = [directory.as_slice(), data.as_slice()].concat();
            let count = |part: Part<'_>| bytes.get(part.data_range()).map_or(0, |data| part.entries(data).count());
            let total: usize = block.parts().map_while(Result::ok).map(count).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}

#[test]
fn a_block_of_another_journal_or_version_is_told_from_damage() {
    let (mut directory, _, end) = encode(&[Append { seq: FlushSeq(7), groups: vec![] }]);
    let other = JournalIdentity { shard: ShardId(3), ..IDENTITY };
    assert_eq!(Block::parse(&directory, other).unwrap_err(), BlockError::Foreign);
    let other = JournalIdentity { storage: [8; 16], ..IDENTITY };
    assert_eq!(Block::parse(&directory, other).unwrap_err(), BlockError::Foreign);
    assert_eq!(end.seq, FlushSeq(7));
    directory[4] = 3;
    assert_eq!(Block::parse(&directory, IDENTITY).unwrap_err(), BlockError::Version { version: 3 });
}
