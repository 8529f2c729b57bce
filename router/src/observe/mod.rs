//! What operators and their tools see of a router: metrics over HTTP, and what happened.
//!
//! [`tallies`] counts what happens where it happens, `metrics` reads everything else when it is asked for, [`http`] serves it.
//! [`flows`] tells a collector what flows carried. [`recorder`] keeps what happened ([`happening`]), `journal` has it on disk, `follow` looks for changes of which nothing tells. Nothing here changes anything.

mod changes;
pub mod flows;
mod follow;
pub mod happening;
pub mod http;
mod journal;
mod live;
pub mod metrics;
pub mod observers;
mod paced;
mod page;
pub mod recorder;
pub mod tallies;
mod view;
pub mod words;

use tokio::task::JoinSet;

use crate::daemon::api::Api;
use crate::error::Result;
use crate::transport::tcp;

/// Follows what happens, and serves HTTP if there is a listener, until the tasks end.
pub fn start(listener: Option<std::net::TcpListener>, api: &Api, tasks: &mut JoinSet<()>) -> Result<()> {
    tasks.spawn(follow::follow(api.clone()));
    if let Some(listener) = listener {
        tasks.spawn(http::serve(tcp::in_runtime(listener)?, api.clone()));
    }
    Ok(())
}
