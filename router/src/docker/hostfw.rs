//! Other firewalls of this host: what they drop, weft's own table cannot let through. Chains that drop what they do not know are
//! told of weft's bridges, after what the administrator says; what cannot be told is reported.
//!
//! iptables' chains are changed by `iptables`, those of nftables by `nft`, each rule with a mark of weft's.

use serde::Serialize;
use serde_json::Value;
use tracing::warn;

use super::rules::{BRIDGES, run};

/// By this rules in others' chains are known again.
const COMMENT: &str = "weft";

/// A chain of another firewall that drops what containers need.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Obstacle {
    /// The family, the table and the chain, as `nft list ruleset` names them.
    pub chain: String,
    /// `forward` or `input`.
    pub hook: &'static str,
    /// Whether weft has told it to let containers through.
    pub is_passed: bool,
}

impl Obstacle {
    /// What is kept from containers.
    pub fn what(&self) -> &'static str {
        if self.hook == "input" { "names at their gateway" } else { "the outside, published ports and each other" }
    }

    /// What to do about it, in a line; none if nothing is.
    pub fn advice(&self) -> Option<String> {
        (!self.is_passed).then(|| {
            format!(
                "the firewall chain {} drops what containers need for {}: let interfaces {BRIDGES} through there, in and out \
                 (firewalld: firewall-cmd --permanent --zone=trusted --add-interface=... and --reload)",
                self.chain,
                self.what()
            )
        })
    }

    /// Says once that it is there.
    pub fn warn(&self) {
        match self.advice() {
            Some(advice) => warn!("{advice}"),
            None => warn!(
                "the firewall chain {} drops what it does not know; weft added rules there that let interfaces {BRIDGES} through \
                 for {}",
                self.chain,
                self.what()
            ),
        }
    }
}

/// Looks through the host's firewalls and has them let containers through.
pub async fn pass(has_ipv6: bool) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    for (program, family) in [("iptables", "ip"), ("ip6tables", "ip6")] {
        if family == "ip" || has_ipv6 {
            obstacles.extend(pass_iptables(program, family).await);
        }
    }
    let Ok(listed) = run("nft", &["-j", "-t", "list", "ruleset"], "").await else { return obstacles };
    let ruleset: Value = serde_json::from_str(&listed).unwrap_or_default();
    for chain in dropping(&ruleset) {
        let passed = pass_nft(&chain, &ruleset).await;
        obstacles.push(Obstacle { chain: chain.name(), hook: chain.hook, is_passed: passed });
    }
    obstacles
}

/// Takes weft's rules out of the host's firewalls.
pub async fn remove() {
    for program in ["iptables", "ip6tables"] {
        for (chain, rules) in [("DOCKER-USER", &FORWARD[..]), ("FORWARD", &FORWARD), ("INPUT", &INPUT)] {
            for rule in rules {
                let arguments = [&["-w", "2", "-D", chain], *rule].concat();
                while run(program, &arguments, "").await.is_ok() {}
            }
        }
    }
    let listed = run("nft", &["-j", "-t", "-a", "list", "ruleset"], "").await.unwrap_or_default();
    let ruleset: Value = serde_json::from_str(&listed).unwrap_or_default();
    for rule in objects(&ruleset, "rule").filter(|rule| rule["comment"] == COMMENT) {
        let (family, table, chain) = (text(&rule["family"]), text(&rule["table"]), text(&rule["chain"]));
        let handle = rule["handle"].to_string();
        let _ = run("nft", &["delete", "rule", family, table, chain, "handle", &handle], "").await;
    }
}

/// What a firewall in front has to let through; weft's own table decides what of it goes on.
const FORWARD: [&[&str]; 2] = [&["-i", "weft+", "-j", "ACCEPT"], &["-o", "weft+", "-j", "ACCEPT"]];
/// Questions to gateways.
const INPUT: [&[&str]; 2] = [
    &["-i", "weft+", "-p", "udp", "-m", "udp", "--dport", "53", "-j", "ACCEPT"],
    &["-i", "weft+", "-p", "tcp", "-m", "tcp", "--dport", "53", "-j", "ACCEPT"],
];

/// The built-in chains of iptables, which are those of nftables' `filter` tables where it is built on that.
async fn pass_iptables(program: &str, family: &str) -> Vec<Obstacle> {
    let Ok(rules) = run(program, &["-w", "2", "-S"], "").await else { return Vec::new() };
    let mut obstacles = Vec::new();
    let wanted = [("forward", forward_place(&rules), &FORWARD), ("input", input_place(&rules), &INPUT)];
    for (hook, place, own) in wanted {
        let Some((chain, at)) = place else { continue };
        let mut is_passed = true;
        for rule in own {
            let written = format!("-A {chain} {}", rule.join(" "));
            if !rules.lines().any(|line| line == written) {
                let at = at.to_string();
                is_passed &= run(program, &[&["-w", "2", "-I", chain, &at], *rule].concat(), "").await.is_ok();
            }
        }
        // The engine's own chain is meant for this.
        if chain != USER || !is_passed {
            obstacles.push(Obstacle { chain: format!("{family} filter {chain}"), hook, is_passed });
        }
    }
    obstacles
}

const USER: &str = "DOCKER-USER";

/// In which chain, and before which of its rules, weft's have to be: after what the administrator says, and before what drops
/// the rest. None: it drops nothing.
fn forward_place(rules: &str) -> Option<(&'static str, usize)> {
    if rules.lines().any(|line| line.strip_prefix("-N ") == Some(USER)) {
        let own: Vec<&str> = rules.lines().filter_map(|line| line.strip_prefix("-A DOCKER-USER ")).collect();
        return Some((USER, own.iter().position(|rule| *rule == "-j RETURN").unwrap_or(own.len()) + 1));
    }
    drops(rules, "FORWARD").then_some(("FORWARD", 1))
}

fn input_place(rules: &str) -> Option<(&'static str, usize)> {
    drops(rules, "INPUT").then_some(("INPUT", 1))
}

/// Whether a chain drops what it does not know.
fn drops(rules: &str, chain: &str) -> bool {
    rules.lines().any(|line| {
        let policy = line.strip_prefix("-P ").and_then(|rest| rest.strip_prefix(chain));
        let rule = line.strip_prefix("-A ").and_then(|rest| rest.strip_prefix(chain));
        matches!(policy, Some(" DROP" | " REJECT"))
            || rule.is_some_and(|rule| rule == " -j DROP" || rule.starts_with(" -j REJECT"))
    })
}

/// A base chain of nftables that drops what it does not know.
struct Chain {
    family: String,
    table: String,
    chain: String,
    hook: &'static str,
}

impl Chain {
    fn name(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.chain)
    }
}

fn objects<'a>(ruleset: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    ruleset["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_in(rule: &Value, (family, table, chain): (&str, &str, &str)) -> bool {
    rule["family"] == family && rule["table"] == table && rule["chain"] == chain
}

/// The chains that drop what they do not know: by their policy, or by a last rule without a condition.
fn dropping(ruleset: &Value) -> Vec<Chain> {
    let mut found = Vec::new();
    for chain in objects(ruleset, "chain").filter(|chain| chain["type"] == "filter") {
        let (family, table, name) = (text(&chain["family"]), text(&chain["table"]), text(&chain["name"]));
        let hook = match text(&chain["hook"]) {
            "input" => "input",
            "forward" => "forward",
            _ => continue,
        };
        let is_iptables = matches!((family, table), ("ip" | "ip6", "filter")) && name.to_uppercase() == name;
        let is_known = matches!(family, "ip" | "ip6" | "inet");
        if !is_known || is_iptables || (family, table) == ("inet", "weft") {
            continue;
        }
        let last = objects(ruleset, "rule").filter(|rule| is_in(rule, (family, table, name))).last();
        let ends_in_drop = last.and_then(|rule| rule["expr"].as_array()).is_some_and(|parts| {
            let matters = |part: &&Value| part.get("counter").is_none() && part.get("log").is_none();
            let mut parts = parts.iter().filter(matters);
            parts.next().is_some_and(|part| part.get("drop").is_some() || part.get("reject").is_some())
        });
        if chain["policy"] == "drop" || ends_in_drop {
            let (family, table, chain) = (family.to_owned(), table.to_owned(), name.to_owned());
            found.push(Chain { family, table, chain, hook });
        }
    }
    found
}

/// Has a chain let containers through; whether it does.
async fn pass_nft(chain: &Chain, ruleset: &Value) -> bool {
    let Chain { family, table, chain: name, hook } = chain;
    let is_own = |rule: &&Value| rule["comment"] == COMMENT && is_in(rule, (family, table, name));
    let wanted: Vec<String> = match *hook {
        "forward" => ["iifname", "oifname"].map(|end| format!("{end} \"{BRIDGES}\" accept")).into(),
        _ => {
            let questions = format!("iifname \"{BRIDGES}\" meta l4proto {{ tcp, udp }} th dport 53 accept");
            // Without them a gateway is not found.
            let neighbours =
                format!("iifname \"{BRIDGES}\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept");
            if family == "ip" { vec![questions] } else { vec![questions, neighbours] }
        }
    };
    if objects(ruleset, "rule").filter(is_own).count() >= wanted.len() {
        return true;
    }
    let rules: String = wanted
        .iter()
        .map(|rule| format!("insert rule {family} {table} {name} {rule} comment \"{COMMENT}\"\n"))
        .collect();
    run("nft", &["-f", "-"], &rules).await.is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_come_after_the_administrators() {
        let docker =
            "-P FORWARD DROP\n-N DOCKER-USER\n-A DOCKER-USER -s 192.0.2.1/32 -j DROP\n-A DOCKER-USER -j RETURN";
        assert_eq!(forward_place(docker), Some(("DOCKER-USER", 2)));
        assert_eq!(forward_place("-P FORWARD DROP\n-N DOCKER-USER"), Some(("DOCKER-USER", 1)));
        assert_eq!(forward_place("-P FORWARD DROP"), Some(("FORWARD", 1)));
        assert_eq!(forward_place("-P FORWARD ACCEPT\n-P INPUT DROP"), None);
        assert_eq!(input_place("-P FORWARD ACCEPT\n-P INPUT DROP"), Some(("INPUT", 1)));
        assert_eq!(input_place("-P INPUT ACCEPT\n-A INPUT -i lo -j ACCEPT"), None);
        assert_eq!(input_place("-P INPUT ACCEPT\n-A INPUT -j REJECT --reject-with x"), Some(("INPUT", 1)));
    }

    #[test]
    fn chains_that_drop_what_they_do_not_know_are_found() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| json!({ "chain": { "family": family, "table": table, "name": name, "type": "filter", "hook": hook, "policy": policy } });
        let rule = |table: &str, chain: &str, expr: Value| json!({ "rule": { "family": "inet", "table": table, "chain": chain, "expr": expr } });
        let ruleset = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            chain("inet", "filter", "forward", "forward", "drop"),
            chain("inet", "filter", "input", "input", "accept"),
            chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
            rule("firewalld", "filter_FORWARD", json!([{ "match": {} }, { "accept": null }])),
            rule("firewalld", "filter_FORWARD", json!([{ "reject": { "type": "icmpx" } }])),
            chain("inet", "weft", "forward", "forward", "drop"),
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("bridge", "filter", "forward", "forward", "drop"),
        ]});
        let found: Vec<String> = dropping(&ruleset).iter().map(Chain::name).collect();
        assert_eq!(found, ["inet filter forward", "inet firewalld filter_FORWARD"]);
    }
}
