//! The mesh tested as a whole: simulated in one process, on real kernels in network namespaces, and with real
//! Docker engines.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod docker;
pub mod netns;
pub mod sim;

/// Lets the tests of one program run one at a time: each has the machine's cores to itself for as long as it holds this.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
