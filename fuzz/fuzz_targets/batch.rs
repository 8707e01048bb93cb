#![no_main]
#![allow(dead_code, reason = "the other targets and tests use the rest")]

#[path = "../../engine/core/tests/core/fuzz/mod.rs"]
mod fuzz;
#[path = "../../engine/core/tests/core/harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::batch::batch(data);
});
