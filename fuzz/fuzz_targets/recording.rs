#![no_main]

#[path = "../../engine/driver/tests/fuzz/recording.rs"]
mod recording;

// A replay of what no shard can have taken may panic within a group, which is contained, but libfuzzer-sys
// aborts in its hook, before that. Without the hook only a panic that leaves the call aborts.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| {
    recording::recording(data);
});
