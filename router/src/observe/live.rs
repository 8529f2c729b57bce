//! What the page is told while it is open: server-sent events (HTML, section 9.2) with rows that changed, and with what happened.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::paced::Paced;
use super::view::View;
use super::words::words;
use crate::daemon::api::Api;
use crate::daemon::status;

/// How often rows are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// After so long without changes the page is told that the router was read.
const ALIVE: Duration = Duration::from_secs(5);
/// How long reading may take.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Entries of the recorder that are sent at once, at most.
const ENTRIES: u64 = 300;

/// The view that all clients share; none if the router cannot be read.
pub type Views = Paced<Option<Arc<View>>>;

/// Answers a client with what changes, for as long as it listens.
pub fn follow(api: Api, views: Views) -> Response {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let news = api.observers.recorder.news();
    let client = Client { api, views, shown: Arc::default(), next: 0, ticks, news, told: Instant::now() };
    let events = stream::unfold(client, |mut client| async {
        let event = client.next_event().await;
        Some((Ok::<_, Infallible>(event), client))
    });
    Sse::new(events).into_response()
}

/// A page that is open.
struct Client {
    api: Api,
    views: Views,
    /// What it was sent.
    shown: Arc<View>,
    /// The number of the next entry of the recorder.
    next: u64,
    ticks: Interval,
    news: watch::Receiver<u64>,
    /// When it was last told how the mesh is.
    told: Instant,
}

impl Client {
    async fn next_event(&mut self) -> Event {
        loop {
            let next = self.next;
            let is_news = tokio::select! {
                // What happened is told at once, what it led to with the next look.
                Ok(_) = self.news.wait_for(|latest| *latest > next) => true,
                _ = self.ticks.tick() => false,
            };
            let event = if is_news { self.happened().await } else { self.changed().await };
            if let Some(event) = event {
                return event;
            }
        }
    }

    async fn changed(&mut self) -> Option<Event> {
        let api = self.api.clone();
        let read = async move { status::read(&api).await.ok().map(|report| Arc::new(View::of(report))) };
        // Without an answer nothing is told, by which the page notices.
        let view = tokio::time::timeout(READ_WITHIN, self.views.get(read)).await.ok()?.ok()??;
        let changes = view.since(&self.shown);
        if changes.is_none() && self.told.elapsed() < ALIVE {
            return None;
        }
        let event = match changes {
            Some(changes) => Event::default().event("changed").json_data(changes),
            None => Event::default().event("alive").json_data(true),
        };
        (self.shown, self.told) = (view, Instant::now());
        event.ok()
    }

    async fn happened(&mut self) -> Option<Event> {
        let recorder = self.api.observers.recorder.clone();
        let from = self.next.max(self.news.borrow().saturating_sub(ENTRIES));
        let (entries, next) = tokio::task::spawn_blocking(move || recorder.entries(0, from)).await.ok()?;
        self.next = next;
        let told: Vec<Value> = entries.into_iter().map(with_words).collect();
        Event::default().event("happened").json_data(told).ok()
    }
}

fn with_words(mut entry: Value) -> Value {
    entry["words"] = words(&entry).into();
    entry
}
