//! What containers do while they are measured: TCP streams, paced UDP, echo requests.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{Echo, Ns, tcp_throughput};

/// Round-trip times in microseconds.
#[derive(Clone, Copy)]
pub struct RoundTrips {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

/// Asks so many times, with a pause before each; none when more than a tenth was lost.
pub fn round_trips(from: &Ns, target: IpAddr, count: usize, pause: Duration) -> Result<Option<RoundTrips>> {
    let end = Instant::now() + Duration::from_secs(60);
    pings(from, target, pause, |asked| asked < count && Instant::now() < end)
}

/// The same for as long as a TCP stream runs beside.
pub fn round_trips_beside_tcp(from: &Ns, to: &Ns, target: IpAddr, duration: Duration) -> Result<Option<RoundTrips>> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            // The stream gets up to speed first.
            std::thread::sleep(Duration::from_millis(300));
            pings(from, target, Duration::from_millis(1), |_| !is_over.load(Ordering::Relaxed))
        });
        let carried = tcp_throughput(from, to, target, 1, duration);
        is_over.store(true, Ordering::Relaxed);
        let outcome = pings.join().map_err(|_| Failure::new("the pings failed"))?;
        carried.and(outcome)
    })
}

/// How long an answer is waited for.
const LOST: Duration = Duration::from_millis(500);

fn pings(
    from: &Ns,
    target: IpAddr,
    pause: Duration,
    goes_on: impl Fn(usize) -> bool + Send,
) -> Result<Option<RoundTrips>> {
    let what = || format!("cannot ping {target}");
    from.run(move || -> std::io::Result<Option<RoundTrips>> {
        let mut echo = Echo::open(target)?;
        let (mut times, mut asked) = (Vec::new(), 0);
        while goes_on(asked) {
            asked += 1;
            std::thread::sleep(pause);
            // A lost packet counts as a timeout.
            times.push(echo.ask(56, LOST)?.unwrap_or(LOST));
        }
        Ok(percentiles(times))
    })?
    .doing(what)
}

/// None when more than a tenth was lost.
fn percentiles(mut times: Vec<Duration>) -> Option<RoundTrips> {
    times.sort_unstable();
    let at = |thousandths: usize| times[(times.len() - 1) * thousandths / 1000].as_secs_f64() * 1e6;
    let arrived = times.iter().filter(|time| **time < LOST).count();
    (arrived > 0 && arrived * 10 >= times.len() * 9).then(|| RoundTrips { p50: at(500), p99: at(990), p999: at(999) })
}

/// Questions by UDP that a process in `to` answers, each asked when the one before is answered; none when more than a tenth
/// was lost.
pub fn answers(from: &Ns, to: &Ns, target: IpAddr, count: usize) -> Result<Option<RoundTrips>> {
    const SIZE: usize = 64;
    let what = || format!("cannot ask {target} by UDP");
    let answerer = to.run(|| UdpSocket::bind(SocketAddr::new(target, 0)).doing(what))??;
    answerer.set_read_timeout(Some(LOST * 4)).doing(what)?;
    let address = answerer.local_addr().doing(what)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; SIZE];
            // An empty one is the last.
            while let Ok((1.., asker)) = answerer.recv_from(&mut question) {
                let _ = answerer.send_to(&question, asker);
            }
        });
        let asked = from.run(|| -> Result<Vec<Duration>> {
            let socket = UdpSocket::bind(SocketAddr::new(unspecified(target), 0)).doing(what)?;
            socket.connect(address).doing(what)?;
            socket.set_read_timeout(Some(LOST)).doing(what)?;
            let ask = |number: usize| {
                let (mut question, mut answer) = ([0; SIZE], [0; SIZE]);
                question[..8].copy_from_slice(&number.to_le_bytes());
                let started = Instant::now();
                socket.send(&question).doing(what)?;
                while socket.recv(&mut answer).is_ok() {
                    if answer == question {
                        return Ok(started.elapsed());
                    }
                }
                Ok(LOST)
            };
            (0..count).map(ask).collect()
        });
        // From beside it, where nothing is lost.
        let ended = to.run(|| UdpSocket::bind(SocketAddr::new(target, 0)).and_then(|last| last.send_to(&[], address)));
        ended?.doing(what)?;
        Ok(percentiles(asked??))
    })
}

/// How often the TCP of a namespace has seen that segments had overtaken others (`TcpExt` in /proc/net/netstat).
pub fn reorderings(ns: &Ns) -> Result<f64> {
    let what = || "cannot read TCP's counters".to_owned();
    let counters = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").doing(what))??;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return Err(Failure::new(what())) };
    let counters = names.split_whitespace().zip(values.split_whitespace());
    Ok(counters.filter(|(name, _)| name.ends_with("Reorder")).filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
}

/// How long one rate is tried.
const TRIAL: Duration = Duration::from_millis(400);
/// How near the highest good rate and the lowest bad one come to each other.
const PRECISION: f64 = 1.05;

/// The highest rate of UDP datagrams a second at which less than one in a hundred is lost, within five hundredths. `guess`
/// is where to begin.
pub fn loss_free(from: &Ns, to: &Ns, target: IpAddr, payload: usize, guess: f64) -> Result<f64> {
    let is_good = |rate: f64| -> Result<bool> {
        // A lost time slice of a shared machine is not the candidate's fault.
        for _ in 0..2 {
            let arrived = udp(from, to, target, payload, rate, TRIAL)? as f64;
            if arrived >= rate * TRIAL.as_secs_f64() * 0.99 {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let (mut good, mut bad) = (None, None);
    let mut rate = guess;
    loop {
        *(if is_good(rate)? { &mut good } else { &mut bad }) = Some(rate);
        // From the guess in steps of a quarter, then halfway between.
        rate = match (good, bad) {
            (Some(good), Some(bad)) if bad / good <= PRECISION => return Ok(good),
            (Some(good), Some(bad)) => f64::sqrt(good * bad),
            (Some(good), None) => good * 1.25,
            (None, Some(bad)) if bad < 100.0 => return Ok(0.0),
            (None, _) => rate / 1.25,
        };
    }
}

/// Sends datagrams at an even rate; how many arrived.
fn udp(from: &Ns, to: &Ns, target: IpAddr, payload: usize, rate: f64, duration: Duration) -> Result<u64> {
    /// Beyond this a sender does not catch up: a path that is slower is not to be judged by a burst.
    const BURST: usize = 64;
    let what = || format!("cannot send UDP to {target}");
    let receiver = to.run(|| UdpSocket::bind(SocketAddr::new(target, 0)).doing(what))??;
    // So deep that a receiver without a time slice loses nothing: the path is measured, not the scheduler.
    setsockopt(&receiver, sockopt::RcvBufForce, &(8 << 20)).doing(what)?;
    receiver.set_read_timeout(Some(Duration::from_millis(20))).doing(what)?;
    let address = receiver.local_addr().doing(what)?;
    let (arrived, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2048];
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(_) => drop(arrived.fetch_add(1, Ordering::Relaxed)),
                    Err(_) if is_over.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        let sent = from.run(|| -> Result<()> {
            let socket = UdpSocket::bind(SocketAddr::new(unspecified(target), 0)).doing(what)?;
            socket.connect(address).doing(what)?;
            let (bytes, started) = (vec![0x5a; payload], Instant::now());
            let slices = [[IoSlice::new(&bytes)]; BURST];
            let nowhere: [Option<SockaddrStorage>; BURST] = [None; BURST];
            let mut headers = MultiHeaders::preallocate(BURST, None);
            let mut sent = 0;
            while started.elapsed() < duration {
                let due = (started.elapsed().as_secs_f64() * rate) as usize;
                let count = due.saturating_sub(sent).min(BURST);
                if count == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                    continue;
                }
                let flags = MsgFlags::empty();
                sendmmsg(socket.as_raw_fd(), &mut headers, &slices[..count], &nowhere[..count], [], flags)
                    .doing(what)?;
                sent += count;
            }
            Ok(())
        });
        // What is on its way is given a moment to arrive; what was queued because the path is slower is not counted.
        std::thread::sleep(Duration::from_millis(20));
        let in_time = arrived.load(Ordering::Relaxed);
        is_over.store(true, Ordering::Relaxed);
        sent.and_then(|sent| sent).map(|()| in_time)
    })
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}

/// What the whole machine has spent.
pub struct Cpu {
    /// Seconds on anything.
    pub busy: f64,
    /// Of all time: seconds, or after [`Cpu::since`] a share, that another machine took.
    pub steal: f64,
    total: f64,
}

impl Cpu {
    /// Up to now.
    pub fn read() -> Result<Cpu> {
        let stat = std::fs::read_to_string("/proc/stat").doing(|| "cannot read /proc/stat".into())?;
        let first = stat.lines().next().unwrap_or("").split_whitespace().skip(1);
        // user, nice, system, idle, iowait, irq, softirq, steal, in hundredths (proc(5)).
        let ticks: Vec<f64> = first.flat_map(str::parse).map(|ticks: f64| ticks / 100.0).take(8).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks[..] else {
            return Err(Failure::new("/proc/stat is not as proc(5) has it"));
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Cpu { busy, steal, total: busy + idle + iowait + steal })
    }

    /// Between then and now.
    pub fn since(&self, then: &Cpu) -> Cpu {
        let total = self.total - then.total;
        Cpu { busy: self.busy - then.busy, steal: (self.steal - then.steal) / total.max(0.01), total }
    }
}
