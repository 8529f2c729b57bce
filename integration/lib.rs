//! The mesh tested as a whole: simulated in one process, on real kernels in network namespaces, with real Docker engines, and
//! against malformed input.

pub mod docker;
pub mod fuzz;
pub mod netns;
pub mod sim;
