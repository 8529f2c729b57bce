//! The spare ports that a packet worker receives from.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use weft_mesh::wire::Lane;

use crate::transport::spare::SparePort;

/// Spare ports by what epoll calls them.
#[derive(Default)]
pub struct Spares {
    all: BTreeMap<u64, Arc<SparePort>>,
    ready: Vec<Arc<SparePort>>,
}

impl Spares {
    /// Receives from a port from now on; epoll calls it by the next number.
    pub fn add(&mut self, epoll: &Epoll, next_number: &mut u64, port: Arc<SparePort>) {
        match epoll.add(port.udp.fd(Lane::Main), EpollEvent::new(EpollFlags::EPOLLIN, *next_number)) {
            Ok(()) => {
                self.all.insert(*next_number, port);
                *next_number += 1;
            }
            Err(error) => tracing::debug!(%error, "a spare port cannot be waited for"),
        }
    }

    /// Takes note of what epoll says of a number; false if it is no spare port's.
    pub fn note(&mut self, number: u64) -> bool {
        let port = self.all.get(&number);
        self.ready.extend(port.cloned());
        port.is_some()
    }

    /// Takes a port that has something, each once.
    pub fn take_ready(&mut self) -> Option<Arc<SparePort>> {
        self.ready.pop()
    }

    /// Receives no more from ports that are closed.
    pub fn tidy(&mut self) {
        self.all.retain(|_, port| port.is_open());
    }
}
