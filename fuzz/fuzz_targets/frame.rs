#![no_main]
#![allow(dead_code, reason = "the tests use the rest")]

#[path = "../../netbridge/tests/wire/fuzz/mod.rs"]
mod fuzz;
#[path = "../../netbridge/tests/wire/samples.rs"]
mod samples;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::frame::frame(data);
});
