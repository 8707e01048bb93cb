//! Batches and blocks of records, as entries and clients bring them.

use bytes::Bytes;
use iroh_raft_core::batch::{BATCH_HEADER_BYTES, Batch, BatchHeader, RUN_BYTES, RecordBlock, encode_batch};
use iroh_raft_core::group_command::{GroupCommands, decode_command, encode_command};
use iroh_raft_core::{GroupMeta, Index};

/// Takes bytes for a batch, for a block whose number of records stands in front of it, for commands to a group
/// and for a group's table. Whether they are one.
pub(crate) fn batch(data: &[u8]) -> [bool; 4] {
    [is_batch(data), is_block(data), are_commands(data), is_table(data)]
}

fn are_commands(data: &[u8]) -> bool {
    let Ok(commands) = GroupCommands::decode(&Bytes::copy_from_slice(data)) else { return false };
    assert_eq!(commands.encode(), data, "commands are written in one way");
    for command in &commands.commands {
        assert_eq!(decode_command(&encode_command(command)).as_ref(), Ok(command));
    }
    let mut meta = GroupMeta::default();
    assert_eq!(meta.apply(Index(7), &commands).len(), commands.commands.len(), "each command has an outcome");
    assert_eq!(GroupMeta::decode(meta.encode()), Some(meta));
    true
}

fn is_table(data: &[u8]) -> bool {
    let Some(meta) = GroupMeta::decode(Bytes::copy_from_slice(data)) else { return false };
    assert!(data.is_empty() || meta.encode() == data, "a table is written in one way");
    true
}

fn is_batch(data: &[u8]) -> bool {
    let Ok(batch) = Batch::parse(data) else { return false };
    let header = BatchHeader::parse(data).expect("the header of a batch");
    assert_eq!((header.base, header.at, header.count), (batch.base(), batch.at(), batch.count()));
    let records: Vec<_> = batch.records().collect();
    assert_eq!(records.len(), batch.count() as usize, "every record is there");
    assert_eq!(records[0].0, batch.base());
    let records: Vec<&[u8]> = records.into_iter().map(|(_, record)| record).collect();
    let block = RecordBlock::from_records(&records);
    let runs = usize::from(u16::from_le_bytes([data[2], data[3]])) * RUN_BYTES;
    let again = encode_batch(batch.base(), batch.at(), [&block].into_iter());
    assert_eq!(again[BATCH_HEADER_BYTES..], data[BATCH_HEADER_BYTES + runs..], "nothing is left over");
    assert!(runs > 0 || again == data, "a batch without runs is written in one way");
    true
}

fn is_block(data: &[u8]) -> bool {
    let Some((count, bytes)) = data.split_first_chunk() else { return false };
    let Ok(block) = RecordBlock::new(u32::from_le_bytes(*count), Bytes::copy_from_slice(bytes)) else {
        return false;
    };
    let records: Vec<&[u8]> = block.records().collect();
    assert_eq!(records.len(), block.count() as usize, "every record is there");
    assert_eq!(block.largest(), records.iter().map(|record| record.len()).max().unwrap());
    assert_eq!(block.payload_bytes(), records.iter().map(|record| record.len()).sum::<usize>());
    assert_eq!(RecordBlock::from_records(&records).as_bytes(), bytes, "a block is written in one way");
    true
}
