//! Faults of a simulated mesh of address state machines.

use std::net::Ipv4Addr;

use rand::RngExt;
use weft_mesh::ipam::AllocationId;

use super::{Asked, World};

impl World {
    pub(super) fn fault(&mut self) {
        let host = self.rng.random_range(0..self.hosts.len());
        let is_up = self.hosts[host].ipam.is_some();
        let what = match self.rng.random_range(0..17) {
            0..=3 if is_up => {
                let count = self.rng.random_range(1..8);
                for _ in 0..count {
                    let id = self.random_id();
                    self.allocate(host, id, None);
                }
                format!("h{host} wants {count} addresses")
            }
            4 if is_up => {
                let offset = self.rng.random_range(2..self.range.size() - 1);
                let want = Ipv4Addr::from_bits(self.range.base.to_bits() + offset);
                let id = self.random_id();
                self.allocate(host, id, Some(want));
                format!("h{host} wants {want}")
            }
            5 | 6 if is_up => self.release_some(host),
            7 if is_up => {
                self.stop(host);
                self.start(host, true);
                format!("h{host}'s router is killed and starts again")
            }
            8 if is_up => {
                self.stop(host);
                self.reboot(host);
                format!("h{host} reboots")
            }
            9 if is_up => {
                self.stop(host);
                format!("h{host} goes off")
            }
            10 => {
                let (now, sides) = (self.now, self.rng.random_range(1..4));
                for side in &mut self.side {
                    *side = self.rng.random_range(0..sides);
                }
                self.next_gossip = now;
                format!("the network falls into {sides} parts: {:?}", self.side)
            }
            11 => {
                self.loss = self.rng.random_range(0.0..0.3);
                format!("loss of {:.2}", self.loss)
            }
            12 if is_up => {
                self.hosts[host].old_disk = Some(self.hosts[host].disk.clone());
                format!("h{host}'s disk is copied")
            }
            13 if self.hosts[host].old_disk.is_some() && !self.is_lonely_voter(host) => self.restore_disk(host),
            14 => self.give_up_one(),
            15 | 16 if is_up => self.change_parts(host),
            _ if !is_up => {
                self.reboot(host);
                format!("h{host} comes back")
            }
            _ => self.release_some(host),
        };
        self.story.push(format!("{:?} {what}", self.now));
    }

    /// An old disk of the only voter cannot be told from a new one by hosts it does not meet.
    fn is_lonely_voter(&self, host: usize) -> bool {
        let label = self.hosts[host].label;
        let rings = self.hosts.iter().filter_map(|host| host.ipam.as_ref()?.ring(self.range));
        let mut small = rings.filter(|ring| ring.voters.len() < 3 || ring.voters.contains(&label));
        small.next().is_some()
    }

    fn release_some(&mut self, host: usize) -> String {
        let own: Vec<AllocationId> =
            self.grants.iter().filter(|(_, grant)| grant.host == host).map(|(id, _)| *id).collect();
        let (now, range) = (self.now, self.range);
        let mut count = 0;
        for id in own {
            if self.hosts[host].ipam.is_some() && self.rng.random_bool(0.5) {
                count += 1;
                self.grants.remove(&id);
                if let Some(ipam) = &mut self.hosts[host].ipam {
                    ipam.release(range, id, now);
                }
            }
        }
        self.drain(host);
        format!("h{host} lets go of {count} addresses")
    }

    /// The host's containers start with it and ask for what they had.
    pub(super) fn reboot(&mut self, host: usize) {
        self.start(host, false);
        self.hosts[host].given_up = false;
        let own: Vec<AllocationId> =
            self.grants.iter().filter(|(_, grant)| grant.host == host).map(|(id, _)| *id).collect();
        for id in own {
            self.grants.remove(&id);
            self.allocate(host, id, None);
        }
    }

    /// The whole machine goes back: containers that came since never were.
    fn restore_disk(&mut self, host: usize) -> String {
        self.stop(host);
        let Some(disk) = self.hosts[host].old_disk.take() else { return String::new() };
        self.hosts[host].disk = disk;
        self.grants.retain(|_, grant| grant.host != host);
        self.start(host, false);
        format!("h{host} starts from an old disk")
    }

    fn give_up_one(&mut self) -> String {
        let off = (0..self.hosts.len()).find(|host| self.hosts[*host].ipam.is_none() && !self.hosts[*host].given_up);
        let by = (0..self.hosts.len()).find(|host| self.hosts[*host].ipam.is_some());
        let (Some(off), Some(by)) = (off, by) else { return "no host is off".into() };
        self.hosts[off].given_up = true;
        self.hosts[off].wanted_parts.clear();
        self.grants.retain(|_, grant| grant.host != off);
        let (ticket, now, label) = (self.next_ticket, self.now, self.hosts[off].label);
        self.next_ticket += 1;
        let life = self.hosts[by].life;
        self.tickets.insert(ticket, Asked { host: by, id: [0; 16], since: now, life, parts: None });
        if let Some(ipam) = &mut self.hosts[by].ipam {
            ipam.give_up(ticket, label, now);
        }
        self.drain(by);
        format!("h{by} gives h{off} up")
    }
}
