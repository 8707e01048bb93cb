//! Frames as version 1 wrote them, held against what this build writes and reads.
//!
//! `WRITE_WIRE_FIXTURES=1 cargo test -p iroh-raft-netbridge --test wire` stores frames that are
//! missing. A stored frame is never changed: another layout is another version.

use std::path::Path;

use iroh_raft_netbridge::wire::handshake::FORMAT_FINGERPRINT;

use crate::samples::{decode, encode, joined, samples};

#[test]
fn stored_frames_are_written_and_read_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (name, content) in samples() {
        let path = folder.join(format!("{name}.bin"));
        let written = joined(&encode(&content));
        if std::env::var_os("WRITE_WIRE_FIXTURES").is_some() && !path.exists() {
            std::fs::write(&path, &written).unwrap();
        }
        let stored = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}.bin: {error}"));
        assert_eq!(stored, written, "{name} is written otherwise than it is stored");
        assert_eq!(decode(&stored), Ok(content), "{name} is read otherwise than it was written");
    }
}

/// Nodes of one version refuse each other when this differs.
#[test]
fn the_fingerprint_of_version_1() {
    assert_eq!(FORMAT_FINGERPRINT, 0xf1c69b0d2822b3ab);
}
