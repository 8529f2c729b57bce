//! What hosts tell each other: who is alive, and records.
//!
//! Membership ([`membership`]) is foca's SWIM. It is not a state store: what must reach everybody, late
//! joiners included, is a [`record`] in the [`store`], brought along by digests and deltas ([`sync`]).
//! A record's way: its origin [`Store::put`]s it, [`Store::flush`] signs a batch, neighbours get the
//! batch pushed, [`Store::receive`] checks and keeps it and hands it on; who missed it fetches it when
//! digests are compared.
//!
//! No I/O, clock or OS randomness here.

pub mod membership;
pub mod record;
pub mod store;
pub mod sync;

pub use membership::{MemberId, Membership, MembershipEvent};
pub use record::{Batch, Change, MAX_INCARNATION, Version};
pub use store::{PutError, Received, Store, StoreEvent};
pub use sync::Message;
