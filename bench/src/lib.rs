//! What measurements of different kinds share.

pub mod stage;

use std::path::Path;

use weft_router::error::{Doing, Result};
use weft_router::state;

/// Does something in a directory of its own, which is gone afterwards.
pub fn in_temporary_dir<T>(work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
    state::open_dir(&dir)?;
    let outcome = work(&dir);
    let removed = std::fs::remove_dir_all(&dir).doing(|| format!("cannot remove {}", dir.display()));
    let outcome = outcome?;
    removed.map(|()| outcome)
}
