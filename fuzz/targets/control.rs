//! Drives [`weft_fuzz::control`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::control::run(input));
