//! Memory that a disk can read and write by itself: whole pages, aligned.

/// What O_DIRECT wants of addresses, lengths and offsets; a redb page.
pub(crate) const PAGE_BYTES: usize = 4096;

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; PAGE_BYTES]);

/// Pages one after another.
pub(crate) struct Pages(Box<[Page]>);

impl Pages {
    /// So many pages of zeros.
    pub(crate) fn new(count: usize) -> Pages {
        Pages(vec![Page([0; PAGE_BYTES]); count].into_boxed_slice())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    #[expect(unsafe_code, reason = "an array of arrays of bytes, as bytes")]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: a page is 4,096 initialized bytes without padding, and the slice covers as many
        // pages as there are.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * PAGE_BYTES) }
    }

    #[expect(unsafe_code, reason = "an array of arrays of bytes, as bytes")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any bytes make a page, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * PAGE_BYTES) }
    }

    /// The bytes of some of them.
    pub(crate) fn range(&self, first: usize, count: usize) -> &[u8] {
        &self.bytes()[first * PAGE_BYTES..(first + count) * PAGE_BYTES]
    }
}
