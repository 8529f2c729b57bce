//! What is to happen: by time and, at one time, in the order it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use weft_crypto::Time;

/// Things with the time they are due.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    planned: u64,
}

struct Entry<T> {
    at: Time,
    order: u64,
    what: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), planned: 0 }
    }
}

impl<T> Queue<T> {
    /// Plans something.
    pub fn push(&mut self, at: Time, what: T) {
        self.planned += 1;
        self.heap.push(Reverse(Entry { at, order: self.planned, what }));
    }

    /// When the next thing is due.
    pub fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next thing if it is due at `end`.
    pub fn pop_until(&mut self, end: Time) -> Option<(Time, T)> {
        self.next_at().filter(|at| *at <= end)?;
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
