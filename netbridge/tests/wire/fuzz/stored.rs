//! The target over its stored corpus and seeded changes of it (fuzz/corpus.rs of the repository).

#[path = "../../../../fuzz/allocated.rs"]
mod allocated;
#[path = "../../../../fuzz/corpus.rs"]
mod corpus;

use std::collections::BTreeMap;

use super::frame::frame;
use crate::samples::{Content, encode, joined, refusals, samples};
use iroh_raft_netbridge::wire::handshake::Handshake;

#[global_allocator]
static ALLOCATOR: allocated::Watched = allocated::Watched;

#[test]
fn any_bytes_are_a_frame_or_an_error() {
    if corpus::is_written() {
        write_frames();
    }
    let mut counts: BTreeMap<u8, u64> = BTreeMap::new();
    let is_all = corpus::run("frame", 200_000, |data| {
        let (bytes, kind) = allocated::largest(|| frame(data));
        // A message takes more memory than its row, and a list of them grows by doubling. The target adds
        // some KiB of payload.
        assert!(bytes <= 16 * data.len() + (32 << 10), "{bytes} bytes for a frame of {}", data.len());
        kind.into_iter().for_each(|kind| *counts.entry(kind.number()).or_default() += 1);
    });
    println!("taken by kind: {counts:?}");
    for kind in [0, 1, 2, 3, 16, 17, 32] {
        // Changes that nothing lets through test little more than the first lines.
        assert!(!is_all || counts.get(&kind).is_some_and(|count| *count > 300), "kind {kind}: {counts:?}");
    }
}

fn write_frames() {
    let mut all: Vec<(String, Content)> =
        samples().into_iter().map(|(name, content)| (name.to_owned(), content)).collect();
    for (number, reason) in refusals().into_iter().enumerate() {
        let text = "no".to_owned();
        all.push((format!("refused-{number}"), Content::Handshake(Handshake::Refused { reason, text })));
    }
    // One message, request or answer by itself: most of a large frame is about others.
    for (name, content) in &all.clone() {
        let ones: Vec<Content> = match content {
            Content::Peer(lane, all) => {
                all.iter().map(|one| Content::Peer(*lane, vec![one.clone()])).collect()
            }
            Content::Requests(all) => all.iter().map(|one| Content::Requests(vec![one.clone()])).collect(),
            Content::Replies(all) => all.iter().map(|one| Content::Replies(vec![one.clone()])).collect(),
            Content::Handshake(_) => Vec::new(),
        };
        all.extend(ones.into_iter().zip(1..).map(|(one, number)| (format!("{name}-{number}"), one)));
    }
    for (name, content) in all {
        corpus::write("frame", &name, &joined(&encode(&content)));
    }
}
