//! Bytes as a source of choices. When they are over, every choice is the first one.

use bytes::Bytes;

pub(crate) struct Choices<'a> {
    rest: &'a [u8],
}

/// Distances from a number that mean something: most often none.
const NEAR: [i64; 16] = [0, 0, 0, 0, 0, 0, 1, 1, 1, -1, -1, -1, 2, -2, 3, 7];
/// Where arithmetic goes wrong.
const EXTREMES: [u64; 8] =
    [0, 1, u64::MAX, u64::MAX - 1, 1 << 56, (1 << 56) + 1, i64::MAX as u64, u32::MAX as u64];

impl<'a> Choices<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Choices<'a> {
        Choices { rest: data }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *byte
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        u64::from(self.byte()) % end
    }

    pub(crate) fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()].clone()
    }

    /// A number close to one that means something, or, one time in sixteen, one far away.
    pub(crate) fn number(&mut self, near: u64) -> u64 {
        let byte = self.byte();
        match byte {
            0..240 => near.saturating_add_signed(NEAR[usize::from(byte % 16)]),
            240..248 => EXTREMES[usize::from(byte - 240)],
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    pub(crate) fn bytes(&mut self, count: u64) -> Bytes {
        (0..count).map(|_| self.byte()).collect()
    }
}
