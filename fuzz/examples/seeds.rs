//! Writes each target's seeds into its folder below the one named: where a search by coverage begins.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("say where to write the seeds: cargo run -p weft-fuzz --example seeds -- FOLDER");
        return ExitCode::from(2);
    };
    match weft_fuzz::TARGETS.iter().try_for_each(|target| write(&Path::new(&folder).join(target.name), target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write seeds below {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, target: &weft_fuzz::Target) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let seeds = (target.seeds)();
    (0..)
        .zip(seeds)
        .try_for_each(|(number, seed): (u32, _)| std::fs::write(folder.join(format!("seed-{number}")), seed))
}
