//! `weft events` and times on the command line: what happened to this host's router.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, SpanRelativeTo, Timestamp, ZonedDateTime};
use serde_json::Value;

use super::{client, print, print_on};
use crate::daemon::control::{EventsAnswer, EventsRequest};
use crate::error::{Failure, Result};
use crate::observe::words::{way, words};

/// How soon a router that is gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Prints what happened, and with `follow` what happens from now on.
pub async fn events(socket: &Path, since: Option<&str>, follow: bool, json: bool) -> Result<()> {
    let since = since.map(|text| ago(text, Timestamp::now())).transpose()?.unwrap_or(0);
    let mut request = EventsRequest { since, from: 0, wait: false };
    let (mut run, mut last) = (None, since);
    loop {
        let answer = match client::ask(socket, Method::POST, "/events", &request).await {
            Ok(answer) => answer,
            // A router that starts again goes on where it was.
            Err(_) if follow && run.is_some() => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let EventsAnswer { events, next, run: this_run } = answer;
        if run.replace(this_run).is_some_and(|run| run != this_run) {
            request = EventsRequest { since: last + 1, from: 0, wait: false };
            continue;
        }
        let text: String = match json {
            true => events.iter().map(|event| format!("{event}\n")).collect(),
            false => events.iter().map(|event| format!("{}\n", line(event))).collect(),
        };
        if text.is_empty() && !follow && !json {
            return print("nothing happened in that time\n");
        }
        if !print_on(&text)? || !follow {
            return Ok(());
        }
        last = events.last().and_then(|event| event["at"].as_u64()).unwrap_or(last);
        request = EventsRequest { since: 0, from: next, wait: true };
    }
}

/// The time so long ago, in milliseconds since 1970.
fn ago(text: &str, now: Timestamp) -> Result<u64> {
    let wrong = || Failure::Usage(format!("--since takes how long ago, such as 30m, 2h or 1d, and not {text}"));
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let length: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let then = now.checked_sub(length).ok().filter(|_| !length.is_negative()).ok_or_else(wrong)?;
    Ok(then.as_millisecond().max(0) as u64)
}

/// The last time that a clock here showed this, in milliseconds since 1970: 03:00, 2026-11-28 03:00 or with a zone, as RFC 3339 writes it.
pub fn clock_time(text: &str) -> Result<u64> {
    at(text, &ZonedDateTime::now())
}

fn at(text: &str, now: &ZonedDateTime) -> Result<u64> {
    let wrong = || {
        Failure::Usage(format!(
            "--at takes a time, such as 03:00, '2026-11-28 03:00' or 2026-11-28T03:00:00Z, and not {text}"
        ))
    };
    let local = |time: DateTime| time.to_zoned_datetime(now.time_zone().clone()).map(|zoned| zoned.timestamp());
    let time = if let Ok(time) = text.parse::<Timestamp>() {
        time
    } else if let Ok(time) = text.parse::<DateTime>() {
        local(time).map_err(|_| wrong())?
    } else {
        let time: Time = text.parse().map_err(|_| wrong())?;
        let today = local(now.date().to_datetime(time)).map_err(|_| wrong())?;
        match today > now.timestamp() {
            true => local(now.date().yesterday().map_err(|_| wrong())?.to_datetime(time)).map_err(|_| wrong())?,
            false => today,
        }
    };
    u64::try_from(time.as_millisecond()).map_err(|_| wrong())
}

/// A moment as this host's clock shows it.
pub fn shown(at: &Value) -> String {
    let time = at.as_i64().and_then(|at| Timestamp::from_millisecond(at).ok());
    time.map_or_else(
        || "?".into(),
        |time| time.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// An event for people.
pub fn line(event: &Value) -> String {
    format!("{}  {}", shown(&event["at"]), words(event))
}

/// The path to a host at an earlier time, for people.
pub fn earlier_path(report: &Value) -> String {
    let (host, at) = (report["to"].as_str().unwrap_or_default(), shown(&report["at"]));
    let mut text = match &report["path"] {
        Value::Null if report["begins"].as_u64().is_none_or(|begins| Some(begins) > report["at"].as_u64()) => {
            format!("nothing is known of {at}: what is kept begins {}\n", shown(&report["begins"]))
        }
        Value::Null => format!("{at}: no path to {host} was known\n"),
        _ => format!("{at}: frames to {host} {}, as of {}\n", way(report), shown(&report["since"])),
    };
    if let Some(rtt) = report["rtt_us"].as_u64() {
        text += &format!("  {:.1} ms, {} % lost\n", rtt as f64 / 1e3, report["loss_percent"]);
    }
    text.extend(report["events"].as_array().into_iter().flatten().map(|event| format!("  {}\n", line(event))));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> ZonedDateTime {
        "2026-11-28T10:00:00+01:00[+01:00]".parse().unwrap()
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let moment = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond() as u64;
        for (text, expected) in [
            ("03:00", "2026-11-28T02:00:00Z"),
            ("23:30", "2026-11-27T22:30:00Z"),
            ("2026-11-20 03:00", "2026-11-20T02:00:00Z"),
            ("2026-11-20T03:00:00Z", "2026-11-20T03:00:00Z"),
        ] {
            assert_eq!(at(text, &now()).unwrap(), moment(expected), "{text}");
        }
        for (text, expected) in
            [("2h", "2026-11-28T07:00:00Z"), ("90m", "2026-11-28T07:30:00Z"), ("1d", "2026-11-27T09:00:00Z")]
        {
            assert_eq!(ago(text, now().timestamp()).unwrap(), moment(expected), "{text}");
        }
        for wrong in ["", "yesterday", "25:00", "-2h", "1"] {
            assert!(at(wrong, &now()).is_err() && ago(wrong, now().timestamp()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_are_one_line_each() {
        let event = json!({ "at": 0, "event": "link_down", "peer": "h1", "cause": "nothing comes back" });
        assert!(line(&event).ends_with("link to h1 down: nothing comes back"), "{}", line(&event));
        let refused = json!({ "event": "call_refused", "call": "a", "why": "\u{1b}[2J" });
        assert!(!line(&refused).contains('\u{1b}'), "{}", line(&refused));
    }

    #[test]
    fn an_earlier_path_is_told_with_what_is_not_known() {
        let known = json!({
            "to": "h1", "at": 5000, "begins": 0, "path": "direct", "via": null, "transport": "udp", "since": 1000, "rtt_us": 900,
            "loss_percent": 2, "events": [],
        });
        let text = earlier_path(&known);
        assert!(text.contains("frames to h1 go straight by udp") && text.contains("0.9 ms, 2 % lost"), "{text}");
        let unknown = json!({ "to": "h1", "at": 5000, "begins": 6000, "path": null, "events": [] });
        assert!(earlier_path(&unknown).contains("what is kept begins"));
    }
}
