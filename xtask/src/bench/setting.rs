//! What every family's bench is given, and the part of it that knows no family: peers join, the race is run, rows come of it.

use super::contender::{Contender, Effort, Measurement, race};
use super::peer::{Peer, PeerProcess};
use super::timing::Stopwatch;
use crate::results::BenchRow;
use crate::{card, source_hash};
use anyhow::Result;
use kernel_core::Gpu;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a family's bench is given.
pub(crate) struct Setting<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
    pub(crate) peers: Option<Rc<RefCell<PeerProcess>>>,
    /// Seconds that a peer may compile and tune for a problem.
    pub(crate) peer_setup_s: f64,
    /// Names of peers that do not run.
    pub(crate) leave_out: &'a [String],
    pub(crate) quick: bool,
    pub(crate) effort: Effort,
    /// Sizes of a problem's first axis to keep (B, M, queries); empty keeps all.
    pub(crate) only: &'a [usize],
}

/// What a problem's rows say of it.
pub(crate) struct Subject {
    pub(crate) family: &'static str,
    pub(crate) op: String,
    pub(crate) shape: BTreeMap<String, u64>,
    pub(crate) dtype: String,
    pub(crate) flop: u64,
    pub(crate) bytes: u64,
}

impl Setting<'_> {
    /// The peers of these names, where peers are wanted; one that cannot be set up is reported to `missing`.
    pub(crate) fn join_peers<'c>(
        &self,
        names: &[&str],
        problem: &Value,
        contenders: &mut Vec<Box<dyn Contender + 'c>>,
        missing: &mut dyn FnMut(&str, &str),
    ) {
        let Some(process) = &self.peers else { return };
        let mut problem = problem.clone();
        problem["limit_s"] = self.peer_setup_s.into();
        for name in names {
            if self.leave_out.iter().any(|out| out == name) {
                missing(name, "left out, as asked");
                continue;
            }
            match Peer::set_up(process, name, &problem) {
                Ok(peer) => contenders.push(Box::new(peer)),
                Err(error) => missing(name, &format!("{error:#}")),
            }
        }
    }

    /// Runs the race, says a `line` of each contender, and gives their rows.
    pub(crate) fn measure(
        &self,
        subject: &Subject,
        title: &str,
        contenders: Vec<Box<dyn Contender + '_>>,
        line: impl Fn(&Measurement) -> String,
        say: &mut dyn FnMut(String),
    ) -> Result<Vec<BenchRow>> {
        let mut missing = |who: &str, why: &str| say(missing_line(title, who, why));
        let measured = race(contenders, self.effort, &mut missing);
        if let Some(process) = &self.peers {
            process.borrow_mut().drop_all()?;
        }
        for m in &measured {
            say(line(m));
        }
        let date = card::now();
        Ok(measured.into_iter().map(|m| subject.row(m, &date)).collect())
    }
}

/// What is said of a contender that is not there.
pub(crate) fn missing_line(title: &str, who: &str, why: &str) -> String {
    format!("{title}: MISSING {who}: {why}")
}

impl Subject {
    fn row(&self, m: Measurement, date: &str) -> BenchRow {
        BenchRow {
            family: self.family.to_owned(),
            op: self.op.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype.clone(),
            route: m.route,
            implementation: m.implementation,
            ms_median: m.samples.median(),
            ms_min: m.samples.min(),
            ms_max: m.samples.max(),
            flop: self.flop,
            bytes: self.bytes,
            peak_bytes: m.peak_bytes,
            host_us: m.host_us,
            auto: m.auto,
            reps: m.samples.len() as u64,
            date: date.to_owned(),
            source_hash: source_hash::of_family(self.family).unwrap_or_default().to_owned(),
        }
    }
}
