//! The command `weft`.

use std::process::ExitCode;

use clap::Parser;
use weft_router::cli::{Cli, misused};

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => cli.run(),
        Err(error) => misused(&error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("weft: {failure}");
            failure.exit_code()
        }
    }
}
