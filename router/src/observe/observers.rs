//! What the router's parts tell about what they do.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::recorder::Recorder;
use super::tallies::Tallies;

/// Counters, and the recorder of what happens.
#[derive(Clone)]
pub struct Observers {
    /// Counters for metrics.
    pub tallies: Tallies,
    /// What happens.
    pub recorder: Arc<Recorder>,
    /// The problem with sending flow records, if there is one.
    pub collector: Arc<ArcSwapOption<String>>,
}

impl Observers {
    /// Nothing is counted yet.
    pub fn new(recorder: Recorder) -> Observers {
        Observers { tallies: Tallies::default(), recorder: Arc::new(recorder), collector: Arc::default() }
    }
}
