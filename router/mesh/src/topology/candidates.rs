//! Paths by which a peer may be reached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::Time;

use super::trial::Trial;
use crate::backoff::Backoff;
use crate::bucket::Bucket;
use crate::path::Path;

/// Paths tried for one peer, and how many of them for having worked.
const MAX: usize = 36;
const MAX_LIKELY: usize = 12;
/// Longest waits between tries of an address: a likely one, and any other.
const LONGEST_LIKELY: Duration = Duration::from_secs(2);
const LONGEST_UNLIKELY: Duration = Duration::from_secs(30);
/// The same where each try is paid for.
pub(super) const LONGEST_METERED: Duration = Duration::from_secs(120);

/// Tries of unlikely paths, at once and in a second: a member may announce a stranger's addresses, and others each time.
const UNLIKELY_AT_ONCE: u64 = 32;
const UNLIKELY_PER_SECOND: u64 = 1;
/// The same of questions by such paths beside a link that works.
const RACED_AT_ONCE: u64 = 16;
const RACED_PER_SECOND: u64 = 2;
/// How long a path is not tried by which the peer refused a link, while there is a route to it.
const REFUSED: Duration = Duration::from_secs(3600);
/// Tries at one time: other peers have their turn, too.
const AT_ONCE: usize = 4;

/// The candidates of one peer.
pub(super) struct Candidates {
    /// Whether each try is paid for.
    is_metered: bool,
    all: BTreeMap<Path, Candidate>,
    unlikely: Bucket,
    raced: Bucket,
}

/// How a path was learnt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Learnt {
    /// The peer advertises it: another device forwards from there to the peer.
    Advertised,
    /// The peer announces it as an address of its own.
    Announced,
    /// Others see the peer there, or did before this host started anew.
    Seen,
    /// Packets of the peer came from there.
    Worked,
}

impl Learnt {
    /// It in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Learnt::Advertised => "it advertises it",
            Learnt::Announced => "an address of its own",
            Learnt::Seen => "others see it there",
            Learnt::Worked => "it came from there",
        }
    }
}

/// What a peer's record says of its paths that it did not say before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// None.
    Nothing,
    /// One that is known already.
    Known,
    /// A new one.
    New,
}

#[derive(Clone, Copy)]
struct Candidate {
    retry: Backoff,
    /// A path that worked: worth trying often.
    is_likely: bool,
    /// Not an address of the peer's own: a NAT may stand there, and has to be opened from the other side first.
    is_mapped: bool,
    trial: Trial,
    /// The peer has asked from there, or so it seemed.
    has_asked: bool,
    /// The peer's record says that it is there.
    is_said: bool,
    /// How it was learnt first, and whether it ever answered.
    learnt: Learnt,
    answered: bool,
    /// When it was last asked for being better than the link's.
    sought: Time,
    /// When the peer refused a link by it.
    refused: Option<Time>,
}

impl Candidate {
    /// Whether the peer refused a link by it a while ago.
    fn is_refused(&self, now: Time) -> bool {
        self.refused.is_some_and(|refused| now.since(refused) < REFUSED)
    }

    /// How often it was tried without an answer.
    fn silent(&self) -> u32 {
        self.retry.failures().max(self.trial.silent())
    }
}

/// A path and what came of it.
pub(super) struct Tried {
    pub(super) path: Path,
    pub(super) learnt: Learnt,
    pub(super) answered: bool,
    pub(super) is_mapped: bool,
    pub(super) tries: u32,
}

/// A path to try now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub(super) path: Path,
    /// Tries that failed before this one.
    pub(super) failures: u32,
    pub(super) is_likely: bool,
}

impl Candidates {
    /// No candidates yet; each try is paid for if it `is_metered`.
    pub(super) fn new(is_metered: bool) -> Self {
        let full = |tries| Bucket::new(tries, Time::ZERO);
        Candidates { is_metered, all: BTreeMap::new(), unlikely: full(UNLIKELY_AT_ONCE), raced: full(RACED_AT_ONCE) }
    }

    /// Adds a path, unless it cannot be tried at any time; returns whether it is new. Those that worked and all others have room of their own:
    /// where a peer was before pushes out no address that it has now.
    pub(super) fn add(&mut self, path: Path, learnt: Learnt) -> bool {
        if !path.is_lasting() {
            return false;
        }
        // What the peer asked now may not be this host's address when it is tried.
        let path = path.from_any();
        let is_new = !self.all.contains_key(&path);
        let new = Candidate {
            retry: Backoff::default(),
            is_likely: false,
            is_mapped: true,
            trial: Trial::default(),
            has_asked: false,
            is_said: false,
            learnt,
            answered: false,
            sought: Time::ZERO,
            refused: None,
        };
        let candidate = self.all.entry(path).or_insert(new);
        candidate.is_mapped &= !matches!(learnt, Learnt::Announced | Learnt::Advertised);
        if learnt == Learnt::Worked {
            candidate.refused = None;
            self.set_likely(path);
        }
        self.make_room(path) && is_new
    }

    /// A path is likely from now on, and if there are too many of those, another no longer: one that fails, and that the peer does not say.
    fn set_likely(&mut self, path: Path) {
        let others = self.all.iter().filter(|(other, candidate)| candidate.is_likely && **other != path);
        let is_full = others.clone().count() >= MAX_LIKELY;
        let worst = others.max_by_key(|(_, c)| (!c.is_said, c.silent())).map(|(path, _)| *path).filter(|_| is_full);
        if let Some(candidate) = self.all.get_mut(&path) {
            candidate.is_likely = true;
        }
        if let Some(worst) = worst {
            self.all.entry(worst).and_modify(|candidate| candidate.is_likely = false);
            self.make_room(worst);
        }
    }

    /// Takes an unlikely path out if there are too many: one that the peer does not say any more, or else the `newest`. Whether that stays.
    fn make_room(&mut self, newest: Path) -> bool {
        let unlikely = self.all.iter().filter(|(_, candidate)| !candidate.is_likely);
        if unlikely.clone().count() <= MAX - MAX_LIKELY {
            return true;
        }
        let unsaid = unlikely.filter(|(path, candidate)| !candidate.is_said && **path != newest);
        let worst = unsaid.max_by_key(|(_, candidate)| candidate.silent()).map_or(newest, |(path, _)| *path);
        self.all.remove(&worst);
        worst != newest
    }

    /// Takes the paths in the peer's record, the first ones if they are too many.
    pub(super) fn hear(&mut self, said: impl Iterator<Item = (Path, Learnt)>) -> Heard {
        let said: Vec<(Path, Learnt)> = said.collect();
        let mut heard = Heard::Nothing;
        for (path, candidate) in &mut self.all {
            let was_said = std::mem::replace(&mut candidate.is_said, said.iter().any(|(said, _)| said == path));
            if candidate.is_said && !was_said {
                heard = Heard::Known;
            }
        }
        for (path, learnt) in said {
            if self.add(path, learnt) {
                heard = Heard::New;
            }
            if let Some(candidate) = self.all.get_mut(&path) {
                candidate.is_said = true;
            }
        }
        heard
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.all.keys()
    }

    /// All paths, and what came of them.
    pub(super) fn tried(&self) -> impl Iterator<Item = Tried> {
        self.all.iter().map(|(path, candidate)| Tried {
            path: *path,
            learnt: candidate.learnt,
            answered: candidate.answered,
            is_mapped: candidate.is_mapped,
            tries: candidate.silent(),
        })
    }

    /// The peer answers there.
    pub(super) fn on_answer(&mut self, path: Path) {
        if let Some(candidate) = self.all.get_mut(&path.from_any()) {
            candidate.answered = true;
            self.set_likely(path.from_any());
        }
    }

    /// The peer asks from there: it is worth a question, too, if not more, for an address is soon forged.
    pub(super) fn on_question(&mut self, path: Path) {
        self.add(path, Learnt::Seen);
        if let Some(candidate) = self.all.get_mut(&path.from_any()) {
            candidate.has_asked = true;
        }
    }

    /// Whether the peer may be behind a NAT.
    pub(super) fn has_mapped(&self) -> bool {
        self.all.values().any(|candidate| candidate.is_mapped)
    }

    /// The addresses worth keeping across restarts.
    pub(super) fn likely(&self) -> Vec<SocketAddr> {
        let likely = self.all.iter().filter(|(path, candidate)| candidate.is_likely && path.is_udp());
        likely.map(|(path, _)| path.remote).collect()
    }

    /// Leaves likely only those that `is_wanted` names.
    pub(super) fn keep_likely(&mut self, is_wanted: impl Fn(&Path) -> bool) {
        for (path, candidate) in &mut self.all {
            candidate.is_likely &= is_wanted(path);
        }
    }

    /// Starts over with an address that answered, or whose link was lost.
    pub(super) fn reset(&mut self, path: Path, now: Time) {
        if let Some(candidate) = self.all.get_mut(&path.from_any()) {
            candidate.retry.reset(now);
        }
    }

    /// The record of a path beside the link's.
    pub(super) fn trial(&mut self, path: Path) -> Option<&mut Trial> {
        self.all.get_mut(&path.from_any()).map(|candidate| &mut candidate.trial)
    }

    /// The paths by UDP beside the link's, `in_use`, that are due to be asked, the most overdue first, but those to addresses of this host's
    /// `own`, those that are worse or that the peer refused, and the outsides of NATs that were not open yet: what comes there unasked may spoil what hosts agree on later.
    pub(super) fn trials(
        &mut self,
        own: &[SocketAddr],
        in_use: Path,
        is_worse: impl Fn(&Path) -> bool,
        now: Time,
    ) -> Vec<(Path, &mut Trial)> {
        let Candidates { all, raced, .. } = self;
        let may_run = |path: &Path, candidate: &Candidate| {
            let is_open = candidate.is_likely || candidate.has_asked || !candidate.is_mapped;
            let is_other = path.is_udp() && !path.may_be(in_use) && !own.contains(&path.remote);
            is_other && is_open && !is_worse(path) && !candidate.is_refused(now) && now >= candidate.trial.next()
        };
        let mut due: Vec<(&Path, &mut Candidate)> =
            all.iter_mut().filter(|(path, candidate)| may_run(path, candidate)).collect();
        due.sort_by_key(|(_, candidate)| candidate.trial.next());
        let mut may_ask =
            |candidate: &Candidate| candidate.is_likely || raced.take(1, RACED_PER_SECOND, RACED_AT_ONCE, now);
        let asked = due.into_iter().filter(|(_, candidate)| may_ask(candidate));
        asked.map(|(path, candidate)| (*path, &mut candidate.trial)).collect()
    }

    /// The peer refuses a link by a path, which is metered.
    pub(super) fn on_refused(&mut self, path: Path, now: Time) {
        if let Some(candidate) = self.all.get_mut(&path.from_any()) {
            candidate.refused = Some(now);
        }
    }

    /// Whether the peer refused a link by a path a while ago.
    pub(super) fn is_refused(&self, path: &Path, now: Time) -> bool {
        self.all.get(&path.from_any()).is_some_and(|candidate| candidate.is_refused(now))
    }

    /// What the peer refused may be tried again.
    pub(super) fn forget_refusals(&mut self) {
        self.all.values_mut().for_each(|candidate| candidate.refused = None);
    }

    /// Returns the paths that `is_better` names, to be asked beside a link that works, but those to addresses of this host's `own` and those that
    /// the peer refused; of unlikely ones so many in a row, those first that were not asked for longest.
    pub(super) fn better(&mut self, own: &[SocketAddr], is_better: impl Fn(&Path) -> bool, now: Time) -> Vec<Path> {
        let Candidates { all, raced, .. } = self;
        let may_run =
            |path: &Path, candidate: &Candidate| is_better(path) && !is_own(own, path) && !candidate.is_refused(now);
        let mut better: Vec<(&Path, &mut Candidate)> =
            all.iter_mut().filter(|(path, candidate)| may_run(path, candidate)).collect();
        better.sort_by_key(|(_, candidate)| candidate.sought);
        better.retain(|(_, candidate)| candidate.is_likely || raced.take(1, RACED_PER_SECOND, RACED_AT_ONCE, now));
        let ask = |(path, candidate): (&Path, &mut Candidate)| {
            candidate.sought = now;
            *path
        };
        better.into_iter().map(ask).collect()
    }

    /// Returns the paths to try now, `tries` at most, which it counts down. Never tried are those to addresses of this host's `own`, those
    /// that are unwanted now, which may depend on whether they are likely and whether the peer refused them, and mapped ones that `is_punched` names: trying them unasked would
    /// spoil what is agreed with the peer.
    pub(super) fn due(
        &mut self,
        own: &[SocketAddr],
        is_unwanted: impl Fn(&Path, bool, bool) -> bool,
        is_punched: impl Fn(&Path) -> bool,
        tries: &mut usize,
        jitter: f64,
        now: Time,
    ) -> Vec<Due> {
        let mut due = Vec::new();
        for (path, candidate) in &mut self.all {
            if *tries == 0 || due.len() >= AT_ONCE {
                break;
            }
            let is_left = is_own(own, path)
                || is_unwanted(path, candidate.is_likely, candidate.is_refused(now))
                || (candidate.is_mapped && path.is_udp() && is_punched(path));
            let is_due = candidate.retry.is_due(now) && !is_left;
            if is_due && (candidate.is_likely || self.unlikely.take(1, UNLIKELY_PER_SECOND, UNLIKELY_AT_ONCE, now)) {
                *tries -= 1;
                let Candidate { retry, is_likely, .. } = candidate;
                due.push(Due { path: *path, failures: retry.failures(), is_likely: *is_likely });
                let longest = match is_likely {
                    _ if self.is_metered => LONGEST_METERED,
                    true => LONGEST_LIKELY,
                    false => LONGEST_UNLIKELY,
                };
                retry.on_try(now, longest, jitter);
            }
        }
        due
    }
}

/// Whether a path leads to an address of this host's `own`.
fn is_own(own: &[SocketAddr], path: &Path) -> bool {
    own.iter().any(|own| if path.is_udp() { *own == path.remote } else { own.ip() == path.remote.ip() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 6783))
    }

    fn learnt(is_likely: bool) -> Learnt {
        if is_likely { Learnt::Worked } else { Learnt::Announced }
    }

    fn path(host: u8) -> Path {
        Path::udp(address(host))
    }

    #[test]
    fn the_list_is_bounded_however_a_path_comes_to_be_likely() {
        let mut candidates = Candidates::new(false);
        for host in 0..100 {
            candidates.hear([(path(host), Learnt::Seen)].into_iter());
            if host % 2 == 0 {
                candidates.on_answer(path(host))
            } else {
                candidates.add(path(host), Learnt::Worked);
            }
            assert!(candidates.likely().contains(&address(host)), "the newest");
        }
        assert_eq!((candidates.paths().count(), candidates.likely().len()), (MAX, MAX_LIKELY));
    }

    #[test]
    fn a_full_list_gives_up_likely_addresses_that_fail_first() {
        let mut candidates = Candidates::new(false);
        for host in 0..MAX_LIKELY as u8 {
            candidates.add(path(host), Learnt::Worked);
        }
        for now in (0..60).map(|second| Time::ZERO + Duration::from_secs(second)) {
            (1..MAX_LIKELY as u8).for_each(|host| candidates.reset(path(host), now));
            candidates.due(&[], |_, _, _| false, |_| false, &mut 99, 0.5, now);
        }
        candidates.add(path(50), Learnt::Worked);
        let left: Vec<SocketAddr> = (1..MAX_LIKELY as u8).chain([50]).map(address).collect();
        assert_eq!(candidates.likely(), left);
    }

    #[test]
    fn where_a_peer_was_before_pushes_out_no_address_that_it_has_now() {
        let mut candidates = Candidates::new(false);
        for round in 0..8u8 {
            // It is seen elsewhere in each place.
            let now: Vec<Path> = (0..7).map(|n| path(10 * round + n)).collect();
            let said = || now.iter().copied().zip([Learnt::Announced].into_iter().chain([Learnt::Seen; 6]));
            assert_eq!([(); 2].map(|()| candidates.hear(said())), [Heard::New, Heard::Nothing]);
            for port in 0..60 {
                let elsewhere = |net: u8, base: u16| Path::udp(SocketAddr::from(([net, 51, 100, round], base + port)));
                for net in [10, 198] {
                    candidates.add(elsewhere(net, 2000), Learnt::Worked);
                    candidates.on_question(elsewhere(net, 3000));
                }
            }
            assert!(now.iter().all(|path| candidates.paths().any(|known| known == path)), "round {round}");
            assert_eq!(candidates.paths().count(), MAX);
        }
    }

    #[test]
    fn due_addresses_are_bounded_back_off_and_leave_out_own_ones() {
        let mut candidates = Candidates::new(false);
        for host in 0..4 {
            candidates.add(path(host), learnt(host == 0));
        }
        let (mut tries, now) = (2, Time::ZERO);
        let due = candidates.due(&[address(1)], |_, _, _| false, |_| false, &mut tries, 0.5, now);
        assert_eq!(due.iter().map(|due| due.path).collect::<Vec<_>>(), [path(0), path(2)]);
        assert_eq!(tries, 0);
        let due = candidates.due(&[], |_, _, _| false, |_| false, &mut 9, 0.5, now);
        assert_eq!(due.iter().map(|due| due.path).collect::<Vec<_>>(), [path(1), path(3)]);
        candidates.reset(path(0), now);
        assert_eq!(candidates.due(&[], |_, _, _| false, |_| false, &mut 9, 0.5, now).len(), 1);
    }

    #[test]
    fn addresses_that_a_peer_announces_anew_each_time_are_tried_ever_more_seldom() {
        let (mut candidates, mut tried) = (Candidates::new(false), 0);
        for millis in (0..60_000u64).step_by(50) {
            let now = Time::ZERO + Duration::from_millis(millis);
            for host in 0..16 {
                let port = 1024 + (millis % 50_000) as u16 + host;
                candidates.add(Path::udp(SocketAddr::from(([192, 0, 2, 1], port))), Learnt::Announced);
            }
            tried += candidates.due(&[], |_, _, _| false, |_| false, &mut 16, 0.5, now).len();
        }
        assert!((80..=93).contains(&tried), "{tried}");
    }

    #[test]
    fn the_outside_of_a_nat_is_not_tried_while_it_is_punched_unless_the_peer_announces_it() {
        let mut candidates = Candidates::new(false);
        candidates.add(path(1), Learnt::Seen);
        candidates.add(path(2), Learnt::Worked);
        candidates.add(path(3), Learnt::Worked);
        candidates.add(path(3), Learnt::Announced);
        let due = candidates.due(&[], |_, _, _| false, |path| path.remote != address(2), &mut 9, 0.5, Time::ZERO);
        assert_eq!(due.iter().map(|due| due.path).collect::<Vec<_>>(), [path(2), path(3)]);
    }
}
