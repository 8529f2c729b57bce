//! Measurements: `speed` beside kernel VXLAN and other overlays, `quick` the same in short, `rough` on bad wires; `floor`,
//! `growth` and `instructions`, what a frame, a session, an endpoint costs; `seen`, what looking at many of them takes; `idle`, what routers do while nothing happens; `sim`,
//! the full counts of simulated meshes, and `scale`, larger and larger ones.

mod http;
mod idle;
mod instructions;
mod scale;
mod simulation;
mod speed;

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
    /// TCP, UDP, CPU and round-trip times between containers of two hosts, with weft, kernel VXLAN and others; needs root
    Speed(speed::Options),
    /// The same in short, in less than three minutes: weft, kernel VXLAN and wireguard-go
    Quick,
    /// TCP on a wire that loses datagrams or lets them overtake each other, with weft and kernel VXLAN; needs root
    Rough(speed::rough::Options),
    /// What peers, sessions and endpoints cost a host that carries traffic; needs root
    Growth(speed::growth::Options),
    /// What it takes to look at a mesh of many hosts and endpoints: metrics and page; needs root
    Seen(speed::seen::Options),
    /// What routers on one LAN say and compute while nothing happens; needs root
    Idle(idle::Options),
    /// What sealing, TAPs and UDP take without anything around them; needs root
    Floor,
    /// Instructions that a frame costs, counted by valgrind
    Instructions,
    /// What `instructions` runs under valgrind
    #[command(hide = true)]
    WorkToCount(instructions::Case),
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
        /// Seeds of the family with lines that are paid for by the byte
        #[arg(long, default_value_t = 200)]
        metered: u64,
        /// Seeds of the family behind NATs
        #[arg(long, default_value_t = 300)]
        nats: u64,
        /// Seeds of the family with relays that do not pass on what they should.
        #[arg(long, default_value_t = 300)]
        relays: u64,
        /// Seeds of the family that hands out addresses
        #[arg(long, default_value_t = 500)]
        addresses: u64,
    },
    /// Simulated meshes of growing size: what a host costs, and how soon all is right
    Scale {
        /// How many hosts
        #[arg(long, value_delimiter = ',', default_values_t = [10, 30, 100, 300, 1000])]
        hosts: Vec<usize>,
        /// In this process
        #[arg(long, hide = true)]
        alone: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Speed(options) => speed::run(&options),
        Command::Quick => speed::run(&speed::Options::quick()),
        Command::Scale { hosts, alone: true } => hosts.into_iter().try_for_each(scale::one),
        Command::Scale { hosts, alone: false } => scale::run(&hosts),
        Command::Rough(options) => speed::rough::run(&options),
        Command::Growth(options) => speed::growth::run(&options),
        Command::Seen(options) => speed::seen::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Floor => speed::floor::run(),
        Command::Instructions => instructions::run(),
        Command::WorkToCount(case) => instructions::work(&case),
        Command::Sim { seed: Some(seed), family, .. } => simulation::one(seed, family),
        Command::Sim { seed: None, count, hundreds, metered, nats, relays, addresses, .. } => {
            simulation::all(&[count, hundreds, metered], [nats, relays, addresses])
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weft-bench: {failure}");
            failure.exit_code()
        }
    }
}
