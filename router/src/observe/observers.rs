//! What the router's parts tell about what they do.

use std::sync::Arc;

use super::recorder::Recorder;
use super::tallies::Tallies;

/// Counters, and the recorder of what happens.
#[derive(Clone)]
pub struct Observers {
    /// Counters for metrics.
    pub tallies: Tallies,
    /// What happens.
    pub recorder: Arc<Recorder>,
}

impl Observers {
    /// Nothing is counted yet.
    pub fn new(recorder: Recorder) -> Observers {
        Observers { tallies: Tallies::default(), recorder: Arc::new(recorder) }
    }
}
