//! What hosts tell each other: who is alive, and records.
//!
//! Membership ([`membership`]) is foca's SWIM. It is not a state store: what must reach everybody, late
//! joiners included, is a [`record`] in the [`store`], brought along by digests and deltas ([`sync`]).
//! A record's way: its origin [`Store::put`]s it, [`Store::flush`] signs a batch, neighbours get the
//! batch pushed, [`Store::receive`] checks and keeps it and hands it on; who missed it fetches it when
//! digests are compared.
//!
//! No I/O, clock or OS randomness here.
//!
//! One host writes a record, another gets it by comparing what both hold:
//!
//! ```
//! use weft_crypto::Identity;
//! use weft_gossip::{Message, Store, StoreEvent};
//!
//! let (alice, bob) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
//! let origin = alice.peer_id();
//! let (mut at_alice, mut at_bob) = (Store::new(alice, 1, 7), Store::new(bob, 1, 8));
//! at_alice.put(b"name", b"web".to_vec())?;
//! // New batches go to the neighbours at once; here they are lost.
//! let lost = at_alice.flush();
//! assert_eq!(lost.len(), 1);
//!
//! // Later both compare: a summary, then digests, then what is missing.
//! let digests = at_bob.answer(&Message::Summary { hash: at_alice.summary() });
//! for reply in digests.iter().flat_map(|digest| at_alice.answer(digest)).collect::<Vec<_>>() {
//!     if let Message::Batches { batches, .. } = reply {
//!         batches.iter().for_each(|batch| drop(at_bob.receive(batch)));
//!     }
//! }
//! let set = StoreEvent::Set { origin, key: b"name".to_vec(), value: b"web".to_vec() };
//! assert_eq!(at_bob.take_events(), [set]);
//! assert_eq!(at_alice.summary(), at_bob.summary());
//! # Ok::<(), weft_gossip::PutError>(())
//! ```

mod log;
pub mod membership;
pub mod record;
pub mod store;
pub mod sync;

pub use membership::{MemberId, Membership, MembershipEvent};
pub use record::{Batch, Change, MAX_INCARNATION, Version};
pub use store::{PutError, Received, Store, StoreEvent};
pub use sync::Message;
