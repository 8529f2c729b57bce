//! Follows paths and links, of which nothing tells by itself.

use std::time::Duration;

use super::recorder::Changes;
use crate::daemon::api::Api;

/// How often links are looked at, and how soon after something happened: what it leads to takes a moment.
const INTERVAL: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(1);

/// Notes how paths and links change, for as long as the router runs.
pub async fn follow(api: Api) {
    let (recorder, mut changes) = (&api.observers.recorder, Changes::default());
    let mut news = recorder.news();
    while let Ok(measures) = api.node.measures().await {
        for happening in measures.peers.iter().flat_map(|peer| changes.look(peer)) {
            recorder.note(&happening);
        }
        changes.retain(&measures.peers);
        // What was noted here is no news.
        news.mark_unchanged();
        if tokio::time::timeout(INTERVAL, news.changed()).await.is_ok() {
            tokio::time::sleep(SOON).await;
        }
    }
}
