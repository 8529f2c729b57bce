//! Families of seeds, and single situations that have to come out right.

use weft_integration::sim::{Scenario, run};

/// As many as the time for simulation on CI holds; the full counts: `cargo run --release -p weft-bench -- sim`.
const SEEDS: u64 = 40;

#[test]
fn meshes_recover_from_random_faults() {
    let only: Option<u64> = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let outcome = run(&Scenario::faults(), seed);
        println!(
            "seed {seed}: {} hosts, right after {:?}, {:.0} B/s a host",
            outcome.hosts, outcome.convergence, outcome.idle_bytes_per_host
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4] {
        assert_eq!(run(&Scenario::faults(), seed).trace, run(&Scenario::faults(), seed).trace);
    }
}
