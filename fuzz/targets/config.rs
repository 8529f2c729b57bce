//! Drives [`weft_fuzz::config`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::config::run(input));
