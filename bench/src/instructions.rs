//! Instructions a frame costs, counted by valgrind's callgrind: the same on every run, which times are not.
//!
//! The counts leave out sealing, whose implementation depends on the machine, and system calls.

use std::process::Command;

use weft_bench::stage::{Nowhere, OTHER, OWN, SIZES, Seal, kinds, receive, segment, tables, wire};
use weft_crypto::Time;
use weft_mesh::datapath::Datapath;
use weft_mesh::datapath::metering::{FlowHashing, FlowTable};
use weft_mesh::snapshot::Snapshot;
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;
use weft_router::error::{Doing, Failure, Result};

/// Frames counted of each kind, and those before them that fill what later ones find.
const FRAMES: usize = 200;
const WARM_UP: usize = 20;

/// What a frame of each of the [`kinds`] may cost on its way out and in, at any number of peers and endpoints.
const BUDGET: [[u64; 2]; 3] = [[2_130, 2_770], [2_270, 2_770], [25_500, 25_700]];
/// How often as much a frame may cost among many peers and endpoints as among few, and where flows are counted as where they are not.
const GROWTH: f64 = 1.10;

/// Which way a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Way {
    /// From a container to the wire.
    Egress,
    /// From the wire to a container.
    Ingress,
}

/// What is counted in one go: a kind of frame one way, among few or many peers and endpoints.
#[derive(Clone, Copy, clap::Args)]
pub struct Case {
    kind: usize,
    size: usize,
    way: Way,
    /// Whether what each flow carries is counted.
    #[arg(long)]
    metered: bool,
}

/// Counts, prints a table, and fails if a budget is overdrawn.
pub fn run() -> Result<()> {
    println!("| instructions a frame | few peers and endpoints | many | budget | many, flows counted |");
    println!("|---|---|---|---|---|");
    let mut overdrawn = Vec::new();
    for (kind, ((name, _), budgets)) in kinds().into_iter().zip(BUDGET).enumerate() {
        for (way, budget) in [Way::Egress, Way::Ingress].into_iter().zip(budgets) {
            let count = |size, metered| count(Case { kind, size, way, metered });
            let (few, many, metered) = (count(0, false)?, count(1, false)?, count(1, true)?);
            let growth = |more: u64, less: u64| more as f64 / less as f64;
            let percent = |more, less| (growth(more, less) - 1.0) * 100.0;
            println!(
                "| {way:?}, {name} | {few} | {many} ({:+.1} %) | {budget} | {metered} ({:+.1} %) |",
                percent(many, few),
                percent(metered, many)
            );
            if many > budget || growth(many, few) > GROWTH || growth(metered, many) > GROWTH {
                overdrawn.push(format!("{way:?}, {name}"));
            }
        }
    }
    match overdrawn.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("more instructions than budgeted: {}", overdrawn.join("; ")))),
    }
}

/// Instructions a frame, counted in a process of its own.
fn count(case: Case) -> Result<u64> {
    let own = std::env::current_exe().doing(|| "cannot find this program's own file".into())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*work_to_count*"])
        .arg(own)
        .args(["work-to-count", &case.kind.to_string(), &case.size.to_string()])
        .arg(if case.way == Way::Egress { "egress" } else { "ingress" })
        .args(case.metered.then_some("--metered"))
        .output()
        .doing(|| "cannot run valgrind; install the package of that name".into())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    match collected.filter(|count| output.status.success() && *count > 0) {
        Some(count) => Ok(count / FRAMES as u64),
        None => {
            Err(Failure::new(format!("valgrind counted nothing: {}", said.lines().last().unwrap_or("it said nothing"))))
        }
    }
}

/// What runs under valgrind. Nothing outside the functions named `work_to_count` is counted.
pub fn work(case: &Case) -> Result<()> {
    let known = kinds().into_iter().nth(case.kind).zip(SIZES.get(case.size));
    let ((_, frame), size) = known.ok_or_else(|| Failure::new("there is no such case"))?;
    let near = tables(OWN, OTHER, Seal::Nothing, *size);
    let (mut sender, mut receiver) = (Datapath::new(64), Datapath::new(64));
    if case.metered {
        for path in [&mut sender, &mut receiver] {
            path.meter_into(Some(Box::new(FlowTable::new(&FlowHashing::new([1, 2])))));
        }
    }
    let mut runs: Vec<_> = (0..WARM_UP + FRAMES).map(|at| wire(&mut sender, &near, &frame, time(at))).collect();
    match case.way {
        Way::Egress => work_to_count_out(&mut sender, &near, segment(), &frame.1, &mut vec![frame.0; FRAMES]),
        Way::Ingress => {
            let far = tables(OTHER, OWN, Seal::Nothing, *size);
            let (warm_up, rest) = runs.split_at_mut(WARM_UP);
            warm_up.iter_mut().for_each(|runs| receive(&mut receiver, &far, runs, time(0)));
            work_to_count_in(&mut receiver, &far, rest);
        }
    }
    Ok(())
}

fn time(frame: usize) -> Time {
    Time::from_nanos(1 + frame as u64 * 10_000)
}

#[inline(never)]
fn work_to_count_out(
    path: &mut Datapath,
    tables: &Snapshot,
    segment: SegmentId,
    vnet: &VnetHeader,
    frames: &mut [Vec<u8>],
) {
    for (number, frame) in frames.iter_mut().enumerate() {
        path.frame(tables, segment, vnet, frame, time(WARM_UP + FRAMES + number), &mut Nowhere);
        path.sender.batch.clear();
    }
}

#[inline(never)]
fn work_to_count_in(path: &mut Datapath, tables: &Snapshot, wire: &mut [Vec<(Vec<u8>, usize)>]) {
    for (number, runs) in wire.iter_mut().enumerate() {
        receive(path, tables, runs, time(number));
    }
}
