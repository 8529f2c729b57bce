//! What the state machine wants done, in order.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use weft_crypto::HostLabel;

use super::message::{Body, Message};
use super::ring::{Range, RingId};
use super::{Error, Output, Ticket};
use crate::stored::Stored;

/// Outputs that wait to be polled.
#[derive(Default)]
pub(super) struct Outbox(VecDeque<Output>);

impl Outbox {
    pub(super) fn push(&mut self, output: Output) {
        self.0.push_back(output);
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        self.0.pop_front()
    }

    pub(super) fn persist(&mut self, key: &Stored, value: Option<Vec<u8>>) {
        self.push(Output::Persist(key.encode(), value));
    }

    pub(super) fn reply(&mut self, ticket: Ticket, result: Result<Ipv4Addr, Error>) {
        self.push(Output::Reply(ticket, result));
    }

    /// Sends a message about a ring; `state` is the ring and the state that the sender is in.
    pub(super) fn send(&mut self, to: HostLabel, range: Range, state: (RingId, u64), body: Body) {
        let (ring, n) = state;
        self.push(Output::Send(to, Message { range, ring, n, body }.encode()));
    }
}
