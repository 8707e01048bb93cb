//! The archive of a frame: one rkyv structure of plain descriptors, validated in place.

use bytes::Bytes;
use rkyv::Portable;
use rkyv::api::high::HighSerializer;
use rkyv::api::low::LowValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Failure, Panic};
use rkyv::ser::allocator::ArenaHandle;

use super::{FrameError, FrameHeader, FrameLimits};

// Features of rkyv are global for a build: these pin the ones that the format depends on.
const _: fn(rkyv::Archived<u64>) -> rkyv::rend::unaligned::u64_ule = |number| number;
const _: fn(rkyv::Archived<usize>) -> rkyv::rend::unaligned::u32_ule = |number| number;

/// Descriptors that can be archived.
pub(super) trait Table:
    for<'a> rkyv::Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Panic>>
{
}

impl<T> Table for T where T: for<'a> rkyv::Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Panic>> {}

/// Appends the archive of `table` to `buffer`.
pub(super) fn write(table: &impl Table, buffer: Vec<u8>) -> Vec<u8> {
    // `Panic` has no values: writing integers to a vector cannot fail.
    rkyv::api::high::to_bytes_in::<_, Panic>(table, buffer).unwrap_or_else(|never| match never {})
}

/// Validates an archive and gives it as it lies.
pub(super) fn access<T>(archive: &[u8]) -> Result<&T, FrameError>
where
    T: Portable + for<'a> CheckBytes<LowValidator<'a, Failure>>,
{
    rkyv::api::low::access::<T, Failure>(archive).map_err(|_| FrameError::Archive)
}

/// An archive that was accessed before: its descriptors are plain numbers, so that validating it
/// again looks at a few lengths only.
pub(super) fn reaccess<T>(archive: &[u8]) -> &T
where
    T: Portable + for<'a> CheckBytes<LowValidator<'a, Failure>>,
{
    checked(access(archive))
}

/// The result of a step that `decode` has taken before, over the same immutable bytes.
///
/// # Panics
/// If `decode` has not.
pub(super) fn checked<T>(result: Result<T, FrameError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("a decoded frame has been walked from end to end: {error}"),
    }
}

/// Cuts a body into archive and payload, and checks their sizes.
pub(super) fn split_body(
    header: &FrameHeader,
    mut body: Bytes,
    limits: &FrameLimits,
) -> Result<(Bytes, Bytes), FrameError> {
    header.check_sizes(limits)?;
    check_bytes("a frame's body", body.len() as u64, header.body_bytes() as u64)?;
    let payload = body.split_off(header.archive_bytes as usize);
    Ok((body, payload))
}

/// An archive holds its descriptors and nothing else: no bytes that nobody names.
pub(super) fn check_archive_bytes(archive: &[u8], named: usize) -> Result<(), FrameError> {
    check_bytes("an archive", archive.len() as u64, named as u64)
}

/// A payload is exactly what the descriptors name, in their order.
pub(super) fn check_payload_bytes(payload: &[u8], named: u64) -> Result<(), FrameError> {
    check_bytes("a payload", payload.len() as u64, named)
}

fn check_bytes(what: &'static str, bytes: u64, expected: u64) -> Result<(), FrameError> {
    if bytes == expected { Ok(()) } else { Err(FrameError::Length { what, bytes, expected }) }
}
