//! Counts allocations of the whole process, and says whose they are.
//!
//! A binary that wants them counted has [`Counting`] as its global allocator. Counting is off until somebody asks for it.
//! With call chains on, each allocation's return addresses go into a table of fixed size; names are looked up afterwards.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Return addresses kept of a call chain. Chains of the asynchronous parts are some forty frames deep.
const FRAMES_MAX: usize = 96;
/// Different call chains that have room. Beyond it they are counted without a name.
const CHAINS_MAX: usize = 8192;
/// Places that a site names, from the inside out.
const PLACES_MAX: usize = 3;

/// The system's allocator, with a count.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// Allocations, and the bytes asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Allocated {
    /// Number of them. Growing one in place counts as another.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Allocated {
    fn add(&mut self, other: Allocated) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

/// Whose code allocated: the innermost frame that is none of the standard library's or of another helper's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// raft-rs.
    Raft,
    /// redb.
    Redb,
    /// iroh, noq and what encrypts for them.
    Quic,
    /// The executor of the shards.
    Glommio,
    /// This project.
    Ours,
    /// The test and its client.
    Test,
    /// Nobody of these: tokio's runtime on its own account, or a chain that found no room.
    Other,
}

/// A place that allocated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Whose it is.
    pub owner: Owner,
    /// The innermost frames of that owner.
    pub place: String,
    /// What it allocated.
    pub allocated: Allocated,
}

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static IS_TRACING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Set while this thread looks at its own call chain.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy)]
struct Chain {
    allocated: Allocated,
    frames: [usize; FRAMES_MAX],
}

const NO_CHAIN: Chain = Chain { allocated: Allocated { count: 0, bytes: 0 }, frames: [0; FRAMES_MAX] };

struct Chains {
    slots: [Chain; CHAINS_MAX],
    lost: Allocated,
}

static CHAINS: Mutex<Chains> =
    Mutex::new(Chains { slots: [NO_CHAIN; CHAINS_MAX], lost: Allocated { count: 0, bytes: 0 } });

fn chains() -> MutexGuard<'static, Chains> {
    CHAINS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Chains {
    fn add(&mut self, frames: &[usize; FRAMES_MAX], allocated: Allocated) {
        // FNV-1a over the addresses.
        let hash = frames.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, frame| {
            (hash ^ *frame as u64).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let first = (hash ^ (hash >> 32)) as usize % CHAINS_MAX;
        for at in (first..CHAINS_MAX).chain(0..first) {
            let slot = &mut self.slots[at];
            if slot.allocated.count == 0 {
                slot.frames = *frames;
            }
            if slot.frames == *frames {
                slot.allocated.add(allocated);
                return;
            }
        }
        self.lost.add(allocated);
    }
}

fn note(bytes: usize) {
    if !IS_COUNTING.load(Ordering::Relaxed) {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    // A thread that ends has no thread-locals any more: it is counted, and not traced.
    if IS_TRACING.load(Ordering::Relaxed)
        && IS_INSIDE.try_with(|inside| !inside.replace(true)).unwrap_or(false)
    {
        trace(Allocated { count: 1, bytes: bytes as u64 });
        let _ = IS_INSIDE.try_with(|inside| inside.set(false));
    }
}

fn trace(allocated: Allocated) {
    let mut frames = [0; FRAMES_MAX];
    let mut depth = 0;
    backtrace::trace(|frame| {
        frames[depth] = frame.ip() as usize;
        depth += 1;
        depth < FRAMES_MAX
    });
    chains().add(&frames, allocated);
}

// SAFETY: hands every call through to the system's allocator as it is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        note(new_bytes);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_bytes) }
    }
}

/// Begins to count, from zero; with call chains if asked for, which costs some microseconds for each allocation.
pub fn begin(with_chains: bool) {
    COUNT.store(0, Ordering::SeqCst);
    BYTES.store(0, Ordering::SeqCst);
    let mut table = chains();
    table.slots.fill(NO_CHAIN);
    table.lost = Allocated::default();
    drop(table);
    IS_TRACING.store(with_chains, Ordering::SeqCst);
    IS_COUNTING.store(true, Ordering::SeqCst);
}

/// Ends the count and returns it.
pub fn end() -> Allocated {
    IS_COUNTING.store(false, Ordering::SeqCst);
    IS_TRACING.store(false, Ordering::SeqCst);
    Allocated { count: COUNT.load(Ordering::SeqCst), bytes: BYTES.load(Ordering::SeqCst) }
}

/// Everything that was allocated, by place, most first. After [`end`] of a count with call chains.
pub fn sites() -> Vec<Site> {
    let table = chains();
    let mut found: BTreeMap<(Owner, String), Allocated> = BTreeMap::new();
    for chain in table.slots.iter().filter(|chain| chain.allocated.count > 0) {
        found.entry(charge(&chain.frames)).or_default().add(chain.allocated);
    }
    if table.lost.count > 0 {
        found.entry((Owner::Other, "no room in the table".into())).or_default().add(table.lost);
    }
    let site = |((owner, place), allocated)| Site { owner, place, allocated };
    let mut sites: Vec<Site> = found.into_iter().map(site).collect();
    sites.sort_by_key(|site| std::cmp::Reverse(site.allocated.count));
    sites
}

/// Whom a call chain is charged to, and where that is.
fn charge(frames: &[usize; FRAMES_MAX]) -> (Owner, String) {
    let mut owner = None;
    let mut is_over = false;
    let mut places: Vec<String> = Vec::new();
    for frame in frames.iter().take_while(|frame| **frame != 0) {
        // Back into the call: the address is where it returns to.
        backtrace::resolve((*frame - 1) as *mut c_void, |symbol| {
            let Some(path) = symbol.filename() else { return };
            // What is below only polls the task.
            is_over |= owner.is_none() && path.to_string_lossy().contains("/tokio-") && is_runtime(path);
            let Some(of) = owner_of(path) else { return };
            if is_over || (of != *owner.get_or_insert(of) && of != Owner::Ours) {
                return;
            }
            places.push(format!("{}:{}", short(path), symbol.lineno().unwrap_or(0)));
            // The innermost of a foreign owner, and where it is called from.
            is_over = places.len() == PLACES_MAX || (of == Owner::Ours && owner != Some(Owner::Ours));
            if owner != Some(Owner::Ours) && of != Owner::Ours {
                places.truncate(1);
            }
        });
        if is_over {
            break;
        }
    }
    match owner {
        Some(owner) => (owner, places.join(" < ")),
        None => (Owner::Other, "no known frame".into()),
    }
}

fn is_runtime(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "runtime")
}

/// Whose source file it is; `None` for those that only help: the standard library, containers, channels.
fn owner_of(path: &Path) -> Option<Owner> {
    let path = path.to_string_lossy();
    if path.ends_with("src/allocations.rs") {
        return None;
    }
    let ours = ["engine/core/src/", "engine/driver/src/", "engine/src/", "netbridge/src/", "storage/src/"];
    let Some((_, inside)) = path.rsplit_once("/registry/src/") else {
        return if ours.iter().any(|folder| path.contains(folder)) {
            Some(Owner::Ours)
        } else if path.contains("tests/src/") || path.contains("tests/tests/") {
            Some(Owner::Test)
        } else {
            None
        };
    };
    let package = inside.split('/').nth(1).unwrap_or_default();
    let is = |name: &str| package.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    match () {
        () if is("raft") || is("raft-proto") => Some(Owner::Raft),
        () if is("redb") => Some(Owner::Redb),
        () if is("glommio") => Some(Owner::Glommio),
        () if ["iroh", "noq", "n0-", "netwatch", "rustls", "ring", "quinn"].iter().any(|name| is(name))
            || package.starts_with("iroh-")
            || package.starts_with("noq-")
            || package.starts_with("n0-") =>
        {
            Some(Owner::Quic)
        }
        () => None,
    }
}

fn short(path: &Path) -> String {
    let path = path.to_string_lossy();
    match path.rsplit_once("/registry/src/") {
        Some((_, inside)) => inside.split_once('/').map_or(inside, |(_, rest)| rest).into(),
        None => {
            let from = ["engine/", "netbridge/", "storage/", "tests/"];
            let at = from.iter().filter_map(|folder| path.find(folder)).min();
            path[at.unwrap_or(0)..].into()
        }
    }
}
