//! Drives [`weft_fuzz::frames`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::frames::run(input));
