//! Drives [`weft_fuzz::plugin`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::plugin::run(input));
