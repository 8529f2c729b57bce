//! Stores on lossy links: under any loss, stores that can talk end up holding the same.

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_crypto::{Identity, PeerId};
use weft_gossip::record::{MAX_KEY, MAX_VALUE};
use weft_gossip::store::PutError;
use weft_gossip::{Message, Received, Store, StoreEvent};

fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n + 1; 32])
}

fn stores(count: u8) -> Vec<Store> {
    (0..count).map(|n| Store::new(identity(n), 1, u32::from(n))).collect()
}

/// Carries `message` from one store to the other and all that it leads to; each is lost with `loss` in 100.
fn deliver(stores: &mut [Store], from: usize, to: usize, message: Message, loss: u32, rng: &mut ChaCha8Rng) {
    let mut queue = std::collections::VecDeque::from([(from, to, message)]);
    let mut steps = 0;
    while let Some((from, to, message)) = queue.pop_front() {
        steps += 1;
        assert!(steps < 20_000, "an exchange does not end");
        let message = Message::decode(&message.encode()).expect("what is sent can be read");
        assert!(message.encode().len() <= 1100);
        if rng.random_range(0..100) < loss {
            continue;
        }
        if let Message::Batches { batches, more } = &message {
            for batch in batches {
                stores[to].receive(batch);
            }
            if *more {
                queue.extend(stores[to].digests().into_iter().map(|digest| (to, from, digest)));
            }
        }
        queue.extend(stores[to].answer(&message).into_iter().map(|reply| (to, from, reply)));
    }
}

fn settle(stores: &mut [Store], rng: &mut ChaCha8Rng) {
    for _ in 0..40 {
        for from in 0..stores.len() {
            let to = rng.random_range(0..stores.len());
            if to != from {
                let summary = Message::Summary { hash: stores[from].summary() };
                deliver(stores, from, to, summary, 0, rng);
            }
        }
        cure(stores);
    }
}

/// Does what a node does about records of its own that it did not write.
fn cure(stores: &mut [Store]) {
    for store in stores {
        for event in store.take_events() {
            if let StoreEvent::OwnAhead { incarnation } = event {
                store.jump_above(incarnation);
            }
        }
    }
}

fn values(store: &Store, origin: PeerId) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.values(origin).into_iter().collect()
}

#[test]
fn all_hold_the_same_after_random_writes_loss_and_compaction() {
    for seed in 0..30 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut stores = stores(5);
        for _ in 0..400 {
            let writer = rng.random_range(0..stores.len());
            let key = [rng.random_range(0..40u8)];
            if rng.random_range(0..3) == 0 {
                stores[writer].delete(&key);
            } else {
                let mut value = vec![0; rng.random_range(0..MAX_VALUE)];
                rng.fill_bytes(&mut value);
                stores[writer].put(&key, value).unwrap();
            }
            let pushed = stores[writer].flush();
            let to = rng.random_range(0..stores.len());
            for batch in pushed {
                if rng.random_range(0..2) == 0 {
                    stores[to].receive(&batch);
                }
            }
            let from = rng.random_range(0..stores.len());
            if from != to && rng.random_range(0..4) == 0 {
                let summary = Message::Summary { hash: stores[from].summary() };
                deliver(&mut stores, from, to, summary, 20, &mut rng);
            }
        }
        settle(&mut stores, &mut rng);
        for origin in 0..5 {
            let expected = values(&stores[origin as usize], identity(origin).peer_id());
            for store in &stores {
                assert_eq!(store.summary(), stores[0].summary(), "seed {seed}");
                assert_eq!(values(store, identity(origin).peer_id()), expected, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_host_that_lost_its_state_or_got_an_old_disk_jumps_above_its_own_records() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut stores = stores(3);
    stores[0].put(b"a", b"old".to_vec()).unwrap();
    stores[0].flush();
    stores[0].jump_above(7);
    settle(&mut stores, &mut rng);
    // The same incarnation and the same version, but another life wrote it: only the boot tag differs.
    for incarnation in [1, 8] {
        stores[0] = Store::new(identity(0), incarnation, 99 + incarnation as u32);
        stores[0].put(b"b", b"new".to_vec()).unwrap();
        stores[0].flush();
        settle(&mut stores, &mut rng);
        for store in &stores {
            assert_eq!(values(store, identity(0).peer_id()), [(b"b".to_vec(), b"new".to_vec())]);
        }
        assert!(stores[0].incarnation() > 8);
    }
}

#[test]
fn forgotten_origins_stay_away_until_they_come_back_higher() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut stores = stores(3);
    stores[2].put(b"x", b"1".to_vec()).unwrap();
    stores[2].flush();
    settle(&mut stores, &mut rng);
    let gone = identity(2).peer_id();
    stores[0].forget(gone, 1);
    assert_eq!(stores[0].take_events(), [StoreEvent::Unset { origin: gone, key: b"x".to_vec() }]);
    let summary = Message::Summary { hash: stores[1].summary() };
    deliver(&mut stores, 1, 0, summary, 0, &mut rng);
    assert_eq!(values(&stores[0], gone), []);
    stores[2].jump_above(1);
    let summary = Message::Summary { hash: stores[2].summary() };
    deliver(&mut stores, 2, 0, summary, 0, &mut rng);
    assert_eq!(values(&stores[0], gone), [(b"x".to_vec(), b"1".to_vec())]);
}

#[test]
fn oversized_records_are_refused_at_the_source_and_junk_at_the_door() {
    let mut stores = stores(2);
    let too_large = stores[0].put(&[0; MAX_KEY + 1], vec![]);
    assert_eq!(too_large, Err(PutError::TooLarge { size: MAX_KEY + 1 }));
    assert!(stores[0].put(b"k", vec![0; MAX_VALUE + 1]).is_err());
    assert_eq!(stores[0].flush(), Vec::<Bytes>::new());
    stores[0].put(b"k", vec![0; MAX_VALUE]).unwrap();
    let batches = stores[0].flush();

    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..20_000 {
        let mut junk = if rng.random() { batches[0].to_vec() } else { vec![0; rng.random_range(0..1100)] };
        if junk.len() == batches[0].len() {
            let bit = rng.random_range(0..junk.len() * 8);
            junk[bit / 8] ^= 1 << (bit % 8);
        } else {
            rng.fill_bytes(&mut junk);
        }
        Message::decode(&junk);
        assert_ne!(stores[1].receive(&junk.into()), Received::New);
    }
    assert_eq!(stores[1].origins().count(), 0);
    assert_eq!(stores[1].receive(&batches[0]), Received::New);
    assert_eq!(stores[1].receive(&batches[0]), Received::Old);
}

#[test]
fn a_half_arrived_reissue_takes_nothing_away() {
    let mut stores = stores(2);
    for key in 0..8u8 {
        stores[0].put(&[key], vec![key; 700]).unwrap();
    }
    let first = stores[0].flush();
    first.iter().for_each(|batch| assert_eq!(stores[1].receive(batch), Received::New));
    let (_, second) = stores[0].jump_above(5);
    assert!(second.len() > 2);
    for batch in &second[..second.len() - 1] {
        assert_eq!(stores[1].receive(batch), Received::New);
        assert_eq!(stores[1].values(identity(0).peer_id()).len(), 8);
    }
    assert_eq!(stores[1].incarnation_of(identity(0).peer_id()), Some(1));
    stores[1].receive(&second[second.len() - 1]);
    assert_eq!(stores[1].incarnation_of(identity(0).peer_id()), Some(6));
}

#[test]
fn a_digest_of_a_range_that_is_none_is_refused() {
    let label = |byte| weft_crypto::HostLabel([byte; 6]);
    let backwards = Message::Digest { from: label(0xff), to: label(0), held: Vec::new(), answer: false };
    assert_eq!(Message::decode(&backwards.encode()), None);
}
