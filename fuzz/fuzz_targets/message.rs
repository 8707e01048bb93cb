#![no_main]

#[path = "../../engine/driver/tests/fuzz/message.rs"]
mod message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    message::message(data);
});
