//! The mesh tested as a whole: simulated in one process, and on real kernels in network namespaces.

pub mod docker;
pub mod netns;
pub mod sim;
