//! Deciding one change: Paxos for a single value (Lamport, "Paxos Made Simple", 2001).
//!
//! Each step of a ring is an instance of its own with the voters of the state before, so that changing the voters
//! is a change like any other. What an acceptor promises and accepts must be on disk before it is said.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weft_crypto::HostLabel;

use super::ring::Change;

/// Proposals are ordered: rounds first, then proposers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Raised after each try that failed.
    pub round: u32,
    /// Whose proposal.
    pub proposer: HostLabel,
}

/// A voter's memory of the instance under way.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Acceptor {
    /// Nothing below it is answered any more.
    pub promised: Ballot,
    /// What was voted for last.
    pub accepted: Option<(Ballot, Change)>,
}

impl Acceptor {
    /// Promises to vote for nothing below `ballot`; answers with what was voted for already. An error is what
    /// was promised to another.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<Option<(Ballot, Change)>, Ballot> {
        if ballot < self.promised {
            return Err(self.promised);
        }
        self.promised = ballot;
        Ok(self.accepted.clone())
    }

    /// Votes for a change.
    pub fn accept(&mut self, ballot: Ballot, change: Change) -> Result<(), Ballot> {
        if ballot < self.promised {
            return Err(self.promised);
        }
        self.promised = ballot;
        self.accepted = Some((ballot, change));
        Ok(())
    }
}

/// What a proposer is to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Wait for more answers.
    Wait,
    /// Enough promises: ask for votes on this change.
    Ask(Change),
    /// Enough votes: this change is decided.
    Decided(Change),
}

/// A proposal under way.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The ballot that promises and votes are for.
    pub ballot: Ballot,
    /// What is wanted; what is decided may be another's.
    pub wanted: Change,
    /// Who is asked.
    pub voters: Vec<HostLabel>,
    needed: usize,
    promises: BTreeMap<HostLabel, Option<(Ballot, Change)>>,
    asked: Option<Change>,
    votes: BTreeSet<HostLabel>,
}

impl Proposal {
    /// Asks `voters` for `wanted`; `needed` of them decide.
    pub fn new(ballot: Ballot, wanted: Change, voters: Vec<HostLabel>, needed: usize) -> Self {
        let (promises, votes) = (BTreeMap::new(), BTreeSet::new());
        Proposal { ballot, wanted, voters, needed, promises, asked: None, votes }
    }

    /// A voter promised.
    pub fn on_promise(&mut self, voter: HostLabel, accepted: Option<(Ballot, Change)>) -> Step {
        if self.asked.is_some() || !self.voters.contains(&voter) {
            return Step::Wait;
        }
        self.promises.insert(voter, accepted);
        if self.promises.len() < self.needed {
            return Step::Wait;
        }
        // Something may be decided already: then it is what the highest ballot among a quorum's votes was for.
        let voted = self.promises.values().flatten().max_by_key(|(ballot, _)| *ballot);
        let change = voted.map_or(&self.wanted, |(_, change)| change).clone();
        self.asked = Some(change.clone());
        Step::Ask(change)
    }

    /// A voter voted.
    pub fn on_vote(&mut self, voter: HostLabel) -> Step {
        let Some(change) = self.asked.clone().filter(|_| self.voters.contains(&voter)) else { return Step::Wait };
        self.votes.insert(voter);
        if self.votes.len() == self.needed { Step::Decided(change) } else { Step::Wait }
    }

    /// Voters that have not answered what was asked last.
    pub fn missing(&self) -> impl Iterator<Item = HostLabel> {
        let has_answered = |voter: &HostLabel| match self.asked {
            Some(_) => self.votes.contains(voter),
            None => self.promises.contains_key(voter),
        };
        self.voters.iter().copied().filter(move |voter| !has_answered(voter))
    }

    /// What votes are asked for, once there were enough promises.
    pub fn asked(&self) -> Option<&Change> {
        self.asked.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn host(n: u8) -> HostLabel {
        HostLabel([n; 6])
    }

    /// Proposers that interrupt each other at any point, over a network that loses and repeats: never two decisions.
    #[test]
    fn only_one_change_is_decided_under_any_loss_and_order() {
        let mut count = 0;
        for seed in 0..2000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut acceptors: Vec<Acceptor> = vec![Acceptor::default(); 5];
            let voters: Vec<HostLabel> = (0..5).map(host).collect();
            let mut decided: Option<Change> = None;
            let mut proposals: Vec<Proposal> = Vec::new();
            for round in 1..40u32 {
                let proposer = rng.random_range(0..3u8);
                let wanted = Change::Close { window: proposer.into(), host: host(proposer) };
                let ballot = Ballot { round, proposer: host(proposer) };
                proposals.push(Proposal::new(ballot, wanted, voters.clone(), 3));
                for _ in 0..rng.random_range(1..12) {
                    // Any proposal, also an old one, hears from any voter.
                    let proposal = rng.random_range(0..proposals.len());
                    let proposal = &mut proposals[proposal];
                    let voter = rng.random_range(0..5usize);
                    let acceptor = &mut acceptors[voter];
                    let step = match proposal.asked.clone() {
                        None => match acceptor.prepare(proposal.ballot) {
                            Ok(accepted) => proposal.on_promise(voters[voter], accepted),
                            Err(_) => Step::Wait,
                        },
                        Some(change) => match acceptor.accept(proposal.ballot, change) {
                            Ok(()) => proposal.on_vote(voters[voter]),
                            Err(_) => Step::Wait,
                        },
                    };
                    if let Step::Decided(change) = step {
                        assert_eq!(*decided.get_or_insert(change.clone()), change, "seed {seed}");
                    }
                }
            }
            count += usize::from(decided.is_some());
        }
        assert!(count > 500, "only {count} seeds came to a decision");
    }
}
