//! Drives [`weft_fuzz::ipam`] by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::ipam::run(input));
