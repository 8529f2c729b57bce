//! The command `weft`.

use std::process::ExitCode;

use clap::Parser;
use weft_router::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weft: {failure}");
            failure.exit_code()
        }
    }
}
