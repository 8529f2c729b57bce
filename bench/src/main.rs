//! Measurements: `throughput` against kernel VXLAN; `sim`, the full counts of simulated meshes; `fuzz`.

mod simulation;
mod throughput;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures weft.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// TCP, CPU and round-trip times between containers of two hosts: weft and kernel VXLAN, interleaved; needs root
    Throughput {
        /// Rounds; each measures every candidate once
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds of TCP a measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Simulated meshes with faults
    Sim {
        /// Run only this seed, and tell its story
        #[arg(long)]
        seed: Option<u64>,
        /// Take that seed of another family than the one with faults
        #[arg(long, default_value = "faults")]
        family: simulation::Family,
        /// Seeds of the family with faults
        #[arg(long, default_value_t = 200)]
        count: u64,
        /// Seeds of the family of 100 hosts
        #[arg(long, default_value_t = 10)]
        hundreds: u64,
        /// Seeds of the family that hands out addresses
        #[arg(long, default_value_t = 500)]
        addresses: u64,
    },
    /// Packets that no resolver would send, for the DNS server
    Fuzz {
        /// How many
        #[arg(long, default_value_t = 10_000_000)]
        count: u64,
        /// Where to begin
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Throughput { rounds, seconds } => throughput::run(rounds, seconds),
        Command::Sim { seed: Some(seed), family, .. } => simulation::one(seed, family),
        Command::Fuzz { count, seed } => {
            println!("{count} packets: {:?}", weft_integration::fuzz::dns(count, seed));
            Ok(())
        }
        Command::Sim { seed: None, count, hundreds, addresses, .. } => simulation::all(count, hundreds, addresses),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weft-bench: {failure}");
            failure.exit_code()
        }
    }
}
