#![no_main]

// redb's panics over damaged pages are caught and become errors, but libfuzzer-sys aborts in its hook,
// before that. Without the hook only a panic that leaves the call aborts.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| {
    iroh_raft_storage::fuzzing::open_damaged(data);
});
