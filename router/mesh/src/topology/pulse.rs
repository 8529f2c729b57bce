//! What two hosts say to each other over an idle link, and when it has to answer.

use std::time::Duration;

use weft_crypto::Time;

/// Silence on a used link that is worth a question.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// Silence after which a link may be doubted.
const ASLEEP: Duration = Duration::from_millis(250);
/// Time between two heartbeats of a host over all its idle links, and over one of them. NATs and firewalls forget a flow after
/// 30 s (RFC 4787, section 4.3, wants two minutes).
const HEARTBEAT: Duration = Duration::from_millis(1400);
const SOONEST_HEARTBEAT: Duration = Duration::from_secs(4);
const LATEST_HEARTBEAT: Duration = Duration::from_secs(15);
/// The time between two on a metered link.
pub(super) const METERED_HEARTBEAT: Duration = Duration::from_secs(25);
/// How late a heartbeat may come: its sender looks at its links at intervals, at rest at long ones.
const LATE: Duration = Duration::from_millis(350);

/// What two hosts say to each other over an idle link.
pub(super) struct Pulse {
    /// When this host last said a heartbeat, and the share of the promised time after which it says the next one.
    last_beat: Time,
    share: f64,
    /// How long this host promised to be silent at most.
    told: Duration,
    /// How long the peer promised to be silent at most.
    promised: Duration,
    /// Datagrams so far that must not be lost unnoticed, and when that was last looked at.
    wanted: (u64, Time),
    /// Since when such are sent and nothing comes back.
    unanswered: Option<Time>,
    pub(super) doubted: Time,
    /// When the peer gave the link up.
    pub(super) lost_by_peer: Time,
}

impl Pulse {
    pub(super) fn new(now: Time) -> Self {
        Pulse {
            last_beat: now,
            share: 1.0,
            told: Duration::ZERO,
            promised: LATEST_HEARTBEAT,
            wanted: (0, now),
            unanswered: None,
            doubted: Time::ZERO,
            lost_by_peer: Time::ZERO,
        }
    }

    /// Whether something has to be said again, if the last was `said` and this host may be silent for `promised`; `share` says for how
    /// much of that it is silent the next time: hosts and links spread out. A peer that was promised less would ask again and again.
    pub(super) fn beats(&mut self, said: Time, promised: Duration, share: impl FnOnce() -> f64, now: Time) -> bool {
        let is_longer = promised > self.told && now.since(self.last_beat) >= SOONEST_HEARTBEAT;
        let is_due = is_longer || now.since(said.max(self.last_beat)) >= promised.mul_f64(self.share);
        if is_due {
            (self.last_beat, self.share, self.told) = (now, share(), promised);
        }
        is_due
    }

    /// The peer promises to say something again within so many milliseconds.
    pub(super) fn promise(&mut self, within: u16) {
        self.promised = Duration::from_millis(within.into()).clamp(SOONEST_HEARTBEAT, METERED_HEARTBEAT);
    }

    /// How long the peer may be silent.
    pub(super) fn promised(&self) -> Duration {
        self.promised
    }

    /// Notes how many datagrams were sent so far that must not be lost unnoticed, and when something was last heard.
    pub(super) fn note(&mut self, wanted: u64, heard: Time, now: Time) {
        let (before, looked) = std::mem::replace(&mut self.wanted, (wanted, now));
        self.unanswered = match self.unanswered.filter(|since| *since > heard) {
            // At rest it is looked seldom, but soon after the first frames.
            None if wanted != before && looked > heard => Some(if now.since(looked) > QUIET { now } else { looked }),
            unanswered => unanswered,
        };
    }

    /// Whether nothing waits for an answer on a link last `heard` then.
    pub(super) fn is_calm(&self, heard: Time) -> bool {
        self.doubted <= heard && self.unanswered.is_none_or(|since| since <= heard)
    }

    /// Whether a link last `heard` so long ago has to answer.
    pub(super) fn is_due(&self, heard: Time, patience: Duration, now: Time) -> bool {
        let quiet = now.since(heard);
        let waits = self.unanswered.is_some_and(|first| now.since(first) >= QUIET.max(patience));
        waits || (quiet >= ASLEEP && (self.doubted > heard || quiet > self.promised + LATE + patience))
    }
}

/// How long a host with so many links may be silent on an idle one.
pub(super) fn longest_silence(links: usize) -> Duration {
    (HEARTBEAT * links as u32).clamp(SOONEST_HEARTBEAT, LATEST_HEARTBEAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_silence_is_promised_before_it_is_kept() {
        let at = |millis: u64| Time::ZERO + Duration::from_millis(millis);
        let mut pulse = Pulse::new(at(0));
        let beats = |pulse: &mut Pulse, from: u64, to: u64, promised: u64| -> Vec<u64> {
            // The peer asks all the time, and is answered.
            let due = |now: &u64| pulse.beats(at(*now), Duration::from_secs(promised), || 1.0, at(*now));
            (from..to).step_by(1000).filter(due).collect()
        };
        assert_eq!(beats(&mut pulse, 0, 20_000, 15), [4000]);
        assert_eq!(beats(&mut pulse, 20_000, 40_000, 25), [20_000]);
        assert_eq!(beats(&mut pulse, 40_000, 60_000, 15), [0; 0]);
    }

    #[test]
    fn what_is_not_answered_for_a_tenth_of_a_second_is_asked_about() {
        let at = |millis: u64| Time::ZERO + Duration::from_millis(millis);
        let patience = Duration::from_millis(60);
        let mut pulse = Pulse::new(at(0));
        // Something was heard at 700, sent at 1000, and it was looked at 750 and 1050, as at rest.
        pulse.note(1, at(700), at(750));
        pulse.note(2, at(700), at(1050));
        let is_due = |pulse: &Pulse, now| pulse.is_due(at(700), patience, at(now));
        assert!(!is_due(&pulse, 1149) && is_due(&pulse, 1150));
        pulse.note(2, at(1060), at(1100));
        assert!(!pulse.is_due(at(1060), patience, at(1200)), "it was answered");
    }

    #[test]
    fn the_more_links_the_longer_each_is_silent() {
        let seconds = |links| longest_silence(links).as_secs_f64();
        assert_eq!([1, 2, 3, 5, 23].map(seconds), [4.0, 4.0, 4.2, 7.0, 15.0]);
    }
}
