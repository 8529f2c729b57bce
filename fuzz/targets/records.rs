//! Drives [`weft_fuzz::records`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::records::run(input));
