//! A short run of what `cargo run --release -p weft-bench -- fuzz` does at length.

#[test]
fn strange_packets_are_survived_and_not_amplified() {
    let tally = weft_integration::fuzz::dns(300_000, 1);
    assert!(tally.answered > 1000 && tally.forwarded > 1000 && tally.dropped > 1000, "{tally:?}");
}
