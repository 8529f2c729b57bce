//! Drives [`weft_fuzz::handshake`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::handshake::run(input));
