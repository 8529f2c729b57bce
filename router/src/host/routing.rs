//! Policy routing (RPDB, `ip rule`): how this host's kernel finds containers, and what it sends nowhere else.
//!
//! Routes to containers are in a table of weft's own, since engines and other programs take any route of the main table that
//! overlaps a network's subnet for a reason not to make that network. Rules say who may use them, in this order:
//!
//! | priority | packets | what |
//! |---|---|---|
//! | 4780 | from an internal network | unreachable |
//! | 4781 | of this host itself | the table |
//! | 4782 | with [`MARK`] | the table |
//! | 4783 | to a range | what the main table has that is more specific than the range |
//! | 4784 | to a range | unreachable |
//!
//! Packets that the firewall lets through to containers have the mark, and those from containers, whose source is looked up with
//! it (`src_valid_mark`): without the firewall's rules, nothing from outside and
//! nothing of another network finds a container. What is in a range and nowhere on this host never leaves by a default route.
//! All of it stays when the router stops or dies; [`remove`] takes it away.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteHeader;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use tracing::warn;

use crate::attach::netlink::in_namespace;
use crate::attach::prefix::{Prefix, has_ipv6};
use crate::error::Result;

/// The table of routes to containers: weft's port number.
pub const TABLE: u32 = 6783;
/// The bit of a packet's mark that lets it use the table.
pub const MARK: u32 = 0x0800_0000;

const FROM_INTERNAL: u32 = 4780;
const FROM_HOST: u32 = 4781;
const MARKED: u32 = 4782;
const MORE_SPECIFIC: u32 = 4783;
const UNREACHABLE: u32 = 4784;
/// How often it is looked whether the rules are still there.
const LOOK: Duration = Duration::from_secs(5);

/// What the rules are made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Where containers have their addresses from.
    pub ranges: BTreeSet<Prefix>,
    /// Bridges of networks without a way out.
    pub internal: BTreeSet<String>,
}

/// Keeps the rules as they are wanted.
#[derive(Default)]
pub struct Routing {
    wanted: Mutex<Policy>,
}

/// One rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rule {
    priority: u32,
    is_v6: bool,
    from: Option<String>,
    to: Option<Prefix>,
    mark: Option<(u32, u32)>,
    action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Action {
    /// Look into a table; with a prefix length, for longer ones only.
    Lookup(u32, Option<u8>),
    Unreachable,
}

impl Routing {
    /// Sets the ranges and internal bridges, at once.
    pub fn set(&self, policy: Policy) -> Result<()> {
        let is_new = {
            let mut wanted = self.lock();
            let is_new = *wanted != policy;
            *wanted = policy.clone();
            is_new
        };
        if is_new { apply(&policy) } else { Ok(()) }
    }

    /// What the rules are made from.
    pub fn wanted(&self) -> Policy {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Policy> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts back what other programs take away, for as long as the router runs.
pub async fn keep(routing: Arc<Routing>) {
    let mut said = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        match apply(&routing.wanted()) {
            Ok(()) => said.clear(),
            Err(error) if error.to_string() != said => {
                said = error.to_string();
                warn!("the host may not reach containers, and their packets may leave by other routes: {said}");
            }
            Err(_) => {}
        }
    }
}

/// Makes the rules what they are to be.
fn apply(policy: &Policy) -> Result<()> {
    let wanted = rules(policy);
    in_namespace(None, async move |net| {
        for (family, is_v6) in families() {
            let wanted: BTreeSet<&Rule> = wanted.iter().filter(|rule| rule.is_v6 == is_v6).collect();
            let mut there = BTreeSet::new();
            for message in net.rules(family).await? {
                match Rule::of(&message) {
                    Some(rule) if wanted.contains(&rule) && there.insert(rule.clone()) => {}
                    Some(_) => net.delete_rule(message).await?,
                    None => {}
                }
            }
            for rule in wanted.into_iter().filter(|rule| !there.contains(rule)) {
                net.add_rule(rule.message()).await?;
            }
        }
        Ok(())
    })
}

/// Takes all rules away.
pub fn remove() -> Result<()> {
    in_namespace(None, async move |net| {
        for (family, _) in families() {
            for message in net.rules(family).await? {
                if is_own(&message) {
                    net.delete_rule(message).await?;
                }
            }
        }
        Ok(())
    })
}

fn families() -> impl Iterator<Item = (IpVersion, bool)> {
    let has_v6 = has_ipv6();
    [(IpVersion::V4, false), (IpVersion::V6, true)].into_iter().filter(move |(_, is_v6)| has_v6 || !is_v6)
}

fn rules(policy: &Policy) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for is_v6 in [false, true] {
        let blank = Rule::blank(0, is_v6);
        let table = Action::Lookup(TABLE, None);
        rules.extend(policy.internal.iter().map(|bridge| Rule {
            priority: FROM_INTERNAL,
            from: Some(bridge.clone()),
            ..blank.clone()
        }));
        rules.insert(Rule { priority: FROM_HOST, from: Some("lo".into()), action: table, ..blank.clone() });
        rules.insert(Rule { priority: MARKED, mark: Some((MARK, MARK)), action: table, ..blank.clone() });
        for range in policy.ranges.iter().filter(|Prefix(ip, _)| ip.is_ipv6() == is_v6) {
            let action = Action::Lookup(RouteHeader::RT_TABLE_MAIN.into(), Some(range.1));
            rules.insert(Rule { priority: MORE_SPECIFIC, to: Some(*range), action, ..blank.clone() });
            rules.insert(Rule { priority: UNREACHABLE, to: Some(*range), ..blank.clone() });
        }
    }
    rules
}

fn priority_of(message: &RuleMessage) -> u32 {
    let mut priorities = message.attributes.iter().filter_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priorities.next_back().unwrap_or(0)
}

fn is_own(message: &RuleMessage) -> bool {
    (FROM_INTERNAL..=UNREACHABLE).contains(&priority_of(message))
}

impl Rule {
    /// A rule for all packets of a family, which leads nowhere.
    fn blank(priority: u32, is_v6: bool) -> Rule {
        Rule { priority, is_v6, from: None, to: None, mark: None, action: Action::Unreachable }
    }

    /// Reads a rule of weft's; none for one of another program.
    fn of(message: &RuleMessage) -> Option<Rule> {
        if !is_own(message) {
            return None;
        }
        let is_v6 = message.header.family == AddressFamily::Inet6;
        let mut rule = Rule::blank(priority_of(message), is_v6);
        let (mut table, mut longer_than) = (u32::from(message.header.table), None);
        let (mut mark, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Iifname(name) => rule.from = Some(name.clone()),
                RuleAttribute::Destination(ip) => rule.to = Some(Prefix(*ip, message.header.dst_len)),
                RuleAttribute::FwMark(value) => mark = Some(*value).filter(|value| *value != 0),
                RuleAttribute::FwMask(value) => mask = *value,
                RuleAttribute::Table(value) => table = *value,
                RuleAttribute::SuppressPrefixLen(value) => longer_than = u8::try_from(*value).ok(),
                _ => {}
            }
        }
        rule.mark = mark.map(|mark| (mark, mask));
        if message.header.action == RuleAction::ToTable {
            rule.action = Action::Lookup(table, longer_than);
        }
        Some(rule)
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.attributes.push(RuleAttribute::Priority(self.priority));
        if let Some(from) = &self.from {
            message.attributes.push(RuleAttribute::Iifname(from.clone()));
        }
        if let Some(Prefix(ip, length)) = self.to {
            message.header.dst_len = length;
            message.attributes.push(RuleAttribute::Destination(ip));
        }
        if let Some((mark, mask)) = self.mark {
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
        }
        match self.action {
            Action::Unreachable => message.header.action = RuleAction::Unreachable,
            Action::Lookup(table, longer_than) => {
                message.header.action = RuleAction::ToTable;
                message.attributes.push(RuleAttribute::Table(table));
                let longer_than = longer_than.map(|length| RuleAttribute::SuppressPrefixLen(length.into()));
                message.attributes.extend(longer_than);
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let ranges = ["10.32.0.0/12", "fd00::/12"].map(|range| range.parse().unwrap()).into();
        let all = rules(&Policy { ranges, internal: ["weft0123456789".to_owned()].into() });
        assert_eq!(all.len(), 2 * 3 + 2 * 2);
        for rule in all {
            assert_eq!(Rule::of(&rule.message()), Some(rule));
        }
        let mut foreign = RuleMessage::default();
        foreign.attributes.push(RuleAttribute::Priority(32766));
        assert_eq!(Rule::of(&foreign), None);
    }
}
