//! Frames, packed and validated: append messages between replicas, and a client's requests, with 1, 64 and 1,024 records of
//! 64 B and 1 KiB. Beside each the copy of as many bytes by `memcpy`, in the same run.
//!
//! Records lie in their batch or block already, and what is received lies in one buffer: nothing here has to copy a kilobyte or
//! more, so a frame of many records may well take less time than the copy.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    AnswerOn, EntryKind, GroupId, Index, LogEntry, MessageKind, NodeId, Offset, PeerMessage, ShardId, Term,
};
use iroh_raft_netbridge::wire::{
    ClientBody, ClientFrame, ClientRequest, FrameHeader, FrameLimits, HEADER_BYTES, Lane, OutFrame,
    PeerFrame, PeerFrameBuilder, RequestFrameBuilder,
};

const SHARD: ShardId = ShardId(0);
const RECORDS: [u32; 3] = [1, 64, 1024];
const RECORD_BYTES: [(&str, usize); 2] = [("64b", 64), ("1k", 1 << 10)];

fn block(records: u32, record_bytes: usize) -> RecordBlock {
    let made: Vec<Vec<u8>> = (0..records).map(|number| vec![number as u8; record_bytes]).collect();
    RecordBlock::from_records(&made)
}

fn message(data: Bytes) -> PeerMessage {
    let entry = LogEntry { index: Index(8), term: Term(1), kind: EntryKind::Normal, data };
    PeerMessage {
        log_term: Term(1),
        index: Index(7),
        commit: Index(6),
        entries: vec![entry],
        ..PeerMessage::bare(MessageKind::Append, GroupId(1), (NodeId(1), NodeId(2)), Term(1))
    }
}

fn request(block: &RecordBlock) -> ClientRequest {
    let body = ClientBody::Append { block: block.clone(), answer: AnswerOn::Commit, run: None };
    ClientRequest { request: 1, group: GroupId(1), deadline_ms: 1000, body }
}

/// A frame as its receiver has it: the header, and the body in one buffer.
fn received(frame: &OutFrame) -> ([u8; HEADER_BYTES], Bytes) {
    let all = frame.chunks.concat();
    let (header, body) = all.split_first_chunk().expect("a header");
    (*header, Bytes::copy_from_slice(body))
}

fn memcpy(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bytes: usize) {
    let (from, mut to) = (vec![7_u8; bytes], vec![0_u8; bytes]);
    group.bench_function(format!("{name}_memcpy"), |bencher| {
        bencher.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
}

fn settings(group: &mut BenchmarkGroup<'_, WallTime>) {
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
}

fn peer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame_peer");
    settings(&mut group);
    let mut builder = PeerFrameBuilder::default();
    for (size, record_bytes) in RECORD_BYTES {
        for records in RECORDS {
            let name = format!("{size}_x{records}");
            let block = block(records, record_bytes);
            let batch = encode_batch(Offset(0), iroh_raft_core::WallTime(1), std::iter::once(&block));
            let bytes = batch.len();
            group.throughput(Throughput::ElementsAndBytes { elements: records.into(), bytes: bytes as u64 });
            let mut pack = || {
                builder.push(message(batch.clone()));
                builder.finish(Lane::Append, SHARD, SHARD)
            };
            let (header, body) = received(&pack());
            group.bench_function(format!("{name}_encode"), |bencher| bencher.iter(|| black_box(pack())));
            group.bench_function(format!("{name}_decode"), |bencher| {
                bencher.iter(|| {
                    let header =
                        FrameHeader::parse(black_box(&header), &FrameLimits::PEER).expect("a header");
                    let frame =
                        PeerFrame::decode(&header, body.clone(), &FrameLimits::PEER).expect("a frame");
                    frame.messages().for_each(|message| drop(black_box(message)));
                });
            });
            memcpy(&mut group, &name, bytes);
        }
    }
    group.finish();
}

fn client(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame_client");
    settings(&mut group);
    let mut builder = RequestFrameBuilder::default();
    for (size, record_bytes) in RECORD_BYTES {
        for records in RECORDS {
            let name = format!("{size}_x{records}");
            let block = block(records, record_bytes);
            let bytes = block.as_bytes().len();
            group.throughput(Throughput::ElementsAndBytes { elements: records.into(), bytes: bytes as u64 });
            let mut pack = || {
                builder.push(&request(&block));
                builder.finish(SHARD)
            };
            let (header, body) = received(&pack());
            group.bench_function(format!("{name}_encode"), |bencher| bencher.iter(|| black_box(pack())));
            group.bench_function(format!("{name}_decode"), |bencher| {
                bencher.iter(|| {
                    let header =
                        FrameHeader::parse(black_box(&header), &FrameLimits::REQUEST).expect("a header");
                    let frame =
                        ClientFrame::decode(&header, body.clone(), &FrameLimits::REQUEST).expect("a frame");
                    frame.requests().for_each(|request| drop(black_box(request)));
                });
            });
            memcpy(&mut group, &name, bytes);
        }
    }
    group.finish();
}

criterion_group!(benches, peer, client);
criterion_main!(benches);
