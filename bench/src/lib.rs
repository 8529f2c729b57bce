//! What measurements of different kinds share.

pub mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_router::daemon::state;
use weft_router::error::{Doing, Failure, Result};

/// Does something in a directory of its own, which is gone afterwards.
pub fn in_temporary_dir<T>(work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
    state::open_dir(&dir)?;
    let outcome = work(&dir);
    let removed = std::fs::remove_dir_all(&dir).doing(|| format!("cannot remove {}", dir.display()));
    let outcome = outcome?;
    removed.map(|()| outcome)
}

/// The binary, built beside this one.
pub fn weft_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().doing(|| "cannot find this program's own file".into())?;
    let weft = own.with_file_name("weft");
    if weft.exists() { Ok(weft) } else { Err(Failure::new("weft is not built: run cargo build --release first")) }
}

/// Writes a fresh network secret to a file that only its owner may read.
pub fn write_secret(file: &Path) -> Result<()> {
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    std::fs::write(file, state::new_secret()?).doing(|| "cannot write the secret".into())?;
    nix::sys::stat::umask(mask);
    Ok(())
}

/// How long the threads of a process have been computing.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let threads =
        std::fs::read_dir(format!("/proc/{pid}/task")).doing(|| format!("cannot list the threads of process {pid}"))?;
    let nanos = |path: &Path| {
        // The first of them is time on a core, in nanoseconds (sched-stats).
        let times = std::fs::read_to_string(path.join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(Duration::from_nanos(threads.flatten().filter_map(|thread| nanos(&thread.path())).sum()))
}
