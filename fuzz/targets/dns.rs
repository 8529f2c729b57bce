//! Drives [`weft_fuzz::dns`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::dns::run(input));
