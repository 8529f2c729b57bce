//! Follows paths, links and losses, of which nothing tells by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::changes::Changes;
use super::happening::Happening;
use crate::daemon::api::Api;
use crate::daemon::status;

/// How often links are looked at, and how soon after an event: its effects take a moment, and events come in swarms.
const INTERVAL: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(1);
const MAX_SWARM: usize = 5;

/// Notes how paths and links change and what is lost, for as long as the router runs.
pub async fn follow(api: Api) {
    let (recorder, mut changes) = (&api.observers.recorder, Changes::default());
    let (mut losses, mut since) = (BTreeMap::new(), Instant::now());
    let mut news = recorder.news();
    loop {
        let before = *news.borrow_and_update();
        let Ok(measures) = api.node.measures().await else { return };
        let now = Instant::now();
        let mut noted: Vec<Happening> = measures.peers.iter().flat_map(|peer| changes.look(peer, now)).collect();
        changes.retain(&measures.peers);
        if now - since >= INTERVAL {
            since = now;
            noted.extend(grown(&mut losses, status::lost(&measures.refused, &api)));
        }
        noted.iter().for_each(|happening| recorder.note(happening));
        // What was noted here is no news, what came meanwhile is.
        let is_quiet = *news.borrow_and_update() <= before + noted.len() as u64;
        if !is_quiet || tokio::time::timeout(INTERVAL, news.changed()).await.is_ok() {
            swarm(&mut news, SOON).await;
        }
    }
}

/// Waits until nothing has come for a moment, but not for long.
async fn swarm(news: &mut watch::Receiver<u64>, soon: Duration) {
    for _ in 0..MAX_SWARM {
        news.mark_unchanged();
        if tokio::time::timeout(soon, news.changed()).await.is_err() {
            return;
        }
    }
}

/// Counters that grew since the last look, and by how much.
fn grown<'k>(
    known: &'k mut BTreeMap<&'static str, u64>,
    counts: impl Iterator<Item = (&'static str, u64)> + 'k,
) -> impl Iterator<Item = Happening> + 'k {
    counts.filter_map(move |(reason, count)| {
        let before = known.insert(reason, count).unwrap_or(0);
        count.checked_sub(before).filter(|grown| *grown > 0).map(|count| Happening::Dropped { reason, count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grew_is_told() {
        let mut known = BTreeMap::new();
        let mut look = |counts: [(&'static str, u64); 2]| grown(&mut known, counts.into_iter()).collect::<Vec<_>>();
        let dropped = |reason, count| Happening::Dropped { reason, count };
        assert_eq!(look([("forged", 0), ("tap_full", 3)]), [dropped("tap_full", 3)]);
        assert!(look([("forged", 0), ("tap_full", 3)]).is_empty());
        assert_eq!(look([("forged", 1), ("tap_full", 10)]), [dropped("forged", 1), dropped("tap_full", 7)]);
    }

    #[tokio::test]
    async fn a_swarm_is_not_awaited_for_ever() {
        let soon = Duration::from_millis(20);
        let (sender, mut news) = watch::channel(0);
        let swarming = tokio::spawn(async move {
            loop {
                tokio::time::sleep(soon / 10).await;
                sender.send_modify(|next| *next += 1);
            }
        });
        let over = tokio::time::timeout(Duration::from_secs(20), swarm(&mut news, soon)).await;
        assert!(over.is_ok());
        swarming.abort();
    }
}
