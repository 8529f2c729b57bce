//! The router's log.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Doing, Failure, Result};

/// Starts the log, at standard error or at the end of a file.
pub fn start(level: &str, json: bool, file: Option<&Path>) -> Result<()> {
    use tracing_subscriber::fmt::writer::BoxMakeWriter;
    use tracing_subscriber::{EnvFilter, fmt};
    let level: tracing::level_filters::LevelFilter =
        level.parse().map_err(|_| Failure::Usage("--log-level takes error, warn, info, debug or trace".into()))?;
    let what = |path: &Path| format!("cannot write the log file {}", path.display());
    let file =
        file.map(|path| File::options().create(true).append(true).open(path).doing(|| what(path))).transpose()?;
    let terminal = file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let writer = file.map_or_else(|| BoxMakeWriter::new(std::io::stderr), |file| BoxMakeWriter::new(Arc::new(file)));
    // What a library thinks of packets from strangers is not for the log.
    let filter = EnvFilter::new(format!("{level},hickory_proto=off"));
    // A log that cannot be written, on a full disk, is not worth a panic.
    let log = fmt().log_internal_errors(false).with_env_filter(filter).with_writer(writer);
    let log = log.with_ansi(terminal).with_target(false);
    if json {
        log.json().init()
    } else {
        log.init()
    }
    Ok(())
}
