//! A mesh of any size, led from one step to the next by the benchmark that measures each step's cost.

use std::time::Duration;

use rand::RngExt;

use super::null;
use super::scenario::Drama;
use super::world::World;

/// How many others a host can reach directly, on average.
const DEGREE: usize = 8;
/// Faults before the one after which convergence is measured.
const FAULTS: usize = 6;
/// How long a mesh may take for what should take seconds; what it does take is the result.
const PATIENCE: Duration = Duration::from_secs(120);

/// What hosts sent.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    fn since(self, before: Traffic) -> Traffic {
        Traffic { datagrams: self.datagrams - before.datagrams, bytes: self.bytes - before.bytes }
    }
}

/// A mesh at rest.
pub struct Mesh {
    world: World,
    drama: Drama,
}

impl Mesh {
    /// Hosts that all start at once, on an underlay on which each reaches a few others; and how long they took until everything
    /// was right.
    pub fn raise(hosts: usize, seed: u64) -> (Mesh, Duration) {
        let mut mesh = Mesh { world: World::new(seed, null::ciphers(), true), drama: Drama::default() };
        mesh.drama.raise(&mut mesh.world, hosts, DEGREE as f64 / hosts as f64, 0.0);
        let took = mesh.drama.await_rest(&mut mesh.world, PATIENCE);
        (mesh, took)
    }

    /// Faults; how long after the last one everything was right again.
    pub fn disturb(&mut self) -> Duration {
        self.drama.act(&mut self.world, FAULTS);
        self.drama.await_rest(&mut self.world, PATIENCE)
    }

    /// Lets time pass.
    pub fn rest(&mut self, duration: Duration) -> Traffic {
        let before = self.sent();
        self.world.run_for(duration);
        self.sent().since(before)
    }

    /// One more host, told of a few others; how long until everything was right, and what was sent meanwhile.
    pub fn join(&mut self) -> (Duration, Traffic) {
        let before = self.sent();
        let newcomer = self.world.add_host();
        for other in 0..newcomer {
            self.world.cut(other, newcomer);
        }
        let running: Vec<usize> = self.drama.model.running.iter().copied().collect();
        for _ in 0..DEGREE / 2 {
            let other = running[self.world.rng.random_range(0..running.len())];
            self.world.heal(other, newcomer);
            self.drama.model.named.insert((other, newcomer));
        }
        self.drama.restart(&mut self.world, newcomer);
        let took = self.drama.await_rest(&mut self.world, PATIENCE);
        (took, self.sent().since(before))
    }

    fn sent(&self) -> Traffic {
        Traffic { datagrams: self.world.datagrams_sent, bytes: self.world.bytes_sent }
    }
}
