//! Equal questions that are under way at once share one answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

/// Who waits for the answer to a question that another one asked first.
pub(super) type Waiters = Vec<oneshot::Sender<Option<Vec<u8>>>>;

/// Equal questions under way.
#[derive(Default)]
pub(super) struct Sharing(Mutex<BTreeMap<[u8; 16], Waiters>>);

/// The first of equal questions. Dropped, it gives its answer, if it has one, to the others.
pub(super) struct First<'a> {
    sharing: &'a Sharing,
    key: [u8; 16],
    pub(super) answer: Option<Vec<u8>>,
}

impl Sharing {
    /// The first one asks, the others wait.
    pub(super) fn enter(&self, key: [u8; 16]) -> Result<First<'_>, oneshot::Receiver<Option<Vec<u8>>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&key) {
            Some(waiting) => {
                let (sender, answer) = oneshot::channel();
                waiting.push(sender);
                Err(answer)
            }
            None => {
                all.insert(key, Vec::new());
                Ok(First { sharing: self, key, answer: None })
            }
        }
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        let mut all = self.sharing.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = all.remove(&self.key).unwrap_or_default();
        drop(all);
        for waiting in waiting {
            // An asker that gave up needs no answer.
            let _ = waiting.send(self.answer.clone());
        }
    }
}
