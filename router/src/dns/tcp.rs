//! The TCP side: for answers that are too long for UDP (RFC 7766).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::framing::{read, write};
use super::meter::{QuestionResult, Turn};
use super::tally::Tally;
use super::upstream::{Upstream, failure};
use super::zone::{Transport, Verdict};
use super::{Audience, Shared};

/// Connections to one listener at once.
const MAX_CONNECTIONS: usize = 256;
/// Connections of one asker.
const MAX_OF_ONE: usize = 64;

/// Serves a listener for as long as the task runs.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, audience: Audience, upstream: Arc<Upstream>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let askers = Arc::<Tally<IpAddr>>::default();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // Out of file descriptors, perhaps: others need time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, audience, upstream) = (shared.clone(), audience.clone(), upstream.clone());
        let askers = askers.clone();
        connections.spawn(async move {
            if let Some(_counted) = askers.count(from.ip(), MAX_OF_ONE) {
                converse(&shared, stream, from.ip(), &audience, &upstream).await;
            }
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream, from: IpAddr, audience: &Audience, upstream: &Upstream) {
    let Ok(seed) = crate::daemon::state::entropy() else { return };
    let mut random = ChaCha8Rng::from_seed(seed);
    while let Some(packet) = read(&mut stream).await {
        let (names, mut turn) = (shared.names.load_full(), Turn::begin());
        let verdict =
            shared.zone.answer(&names, audience.scope(&names, from).as_scope(), &packet, Transport::Tcp, &mut random);
        let answer = match verdict {
            Verdict::Answer(answer) => {
                turn.note(QuestionResult::of(&answer));
                answer
            }
            Verdict::Forward => {
                let answer = upstream.ask(from, &packet, Transport::Tcp).await;
                turn.note(QuestionResult::of_others(answer.as_deref()));
                answer.unwrap_or_else(|| failure(&packet))
            }
            Verdict::Drop => {
                turn.note(QuestionResult::Dropped);
                turn.end(&shared.tallies);
                return;
            }
        };
        turn.end(&shared.tallies);
        if write(&mut stream, &answer).await.is_none() {
            return;
        }
    }
}
