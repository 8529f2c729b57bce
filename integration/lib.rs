//! The mesh tested as a whole: simulated in one process, on real kernels in network namespaces, and with real
//! Docker engines.

pub mod docker;
pub mod netns;
pub mod sim;
