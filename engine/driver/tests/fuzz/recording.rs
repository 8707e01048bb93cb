//! Any bytes as a recording: an error that names a place, or steps to tell and to replay.

use std::collections::BTreeSet;

use iroh_raft_driver::recording::{Recording, RecordingError, Words, replay};

const PREFIX: &[u8; 12] = b"IRAFTREC\x01\0\0\0";
const HEADER_BYTES: usize = 12;

/// Reads bytes as a recording and replays it. Returns what was seen in it, in words.
///
/// First as they are; then with checksums made right: changed bytes would get no further than these.
pub(crate) fn recording(data: &[u8]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    read(data, &mut seen).ok();
    let data = sealed(data);
    if let Err(error) = read(&data, &mut seen) {
        seen.insert(name_of(&error));
    }
    let Ok(recording) = Recording::open(&data[..]) else { return seen };
    // How long a replay takes is up to whoever recorded: not here.
    if recording.config.heartbeat_ticks > 100 {
        return seen;
    }
    seen.insert(match replay(recording, |step, outputs| drop(format!("{step} {}", Words(outputs)))) {
        Ok(report) => format!("replayed, {:?}", report.ending),
        Err(error) => name_of(&error),
    });
    seen
}

/// Reads all there is, and tells it.
pub(crate) fn read(data: &[u8], seen: &mut BTreeSet<String>) -> Result<(), RecordingError> {
    let mut recording = Recording::open(data)?;
    let (mut now, mut at) = (recording.start, 0);
    while let Some(step) = recording.next_step()? {
        assert!(step.now >= now && step.at > at, "steps follow each other");
        assert!(step.at < data.len() as u64);
        (now, at) = (step.now, step.at);
        seen.insert(name_of(&step.kind));
        drop(step.to_string());
    }
    Ok(())
}

/// The names of two variants, one within the other.
fn name_of(value: &impl std::fmt::Debug) -> String {
    let value = format!("{value:?}");
    let names = value.split([' ', '(', '{', ')']).filter(|name| !name.is_empty());
    names.take(2).collect::<Vec<_>>().join(" ")
}

/// The bytes as frames whose checksums are right. Their lengths may claim anything.
pub(crate) fn sealed(data: &[u8]) -> Vec<u8> {
    let mut sealed = PREFIX.to_vec();
    let mut rest = data.get(PREFIX.len()..).unwrap_or_default();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let [l0, l1, l2, l3, ..] = *header;
        let length = [l0, l1, l2, l3];
        let upto = (u32::from_le_bytes(length) as usize).min(behind.len());
        let (payload, next) = behind.split_at(upto);
        let mut header = [length, crc32c::crc32c(payload).to_le_bytes()].concat();
        header.extend(crc32c::crc32c(&header).to_le_bytes());
        sealed.extend(header);
        sealed.extend(payload);
        rest = next;
    }
    sealed.extend(rest);
    sealed
}
