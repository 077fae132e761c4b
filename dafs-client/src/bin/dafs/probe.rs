//! Reads a file again and again and tells which path served each page.

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::json::Json;
use crate::target::Target;
use crate::trust::Trust;
use dafs_client::blocking::{Client, File};
use dafs_client::ordma::AccessFault;
use dafs_client::{Options, PathChoice, ReadReport, Snapshot};
use std::time::{Duration, Instant};

/// The server's counter of requests that cost it work for files.
const HANDLER_CALLS: &str = "handler_calls";

/// What was measured of a file.
#[derive(Debug)]
pub struct Probe {
    /// The engine that was taken, and why.
    pub choice: PathChoice,
    /// How client and server know each other.
    pub trust: Trust,
    /// Bytes of a page.
    pub page_size: usize,
    /// Each pass.
    pub passes: Vec<Pass>,
}

/// One reading of the file, page by page.
#[derive(Debug)]
pub struct Pass {
    /// How the pages were served.
    pub report: ReadReport,
    /// Pages read.
    pub pages: u64,
    /// One-sided reads that faulted, by kind; those that occurred alone.
    pub faults: Vec<(AccessFault, u64)>,
    /// Half of the reads took at most this.
    pub p50: Duration,
    /// 99 of 100 reads took at most this.
    pub p99: Duration,
    /// Requests that the file server handled meanwhile, whoever made them.
    pub handler_calls: u64,
}

/// Reads the first `most` pages of a file `passes` times, with a client that holds no references at
/// first and asks for none but those of the pages it reads.
pub fn probe(cx: &Context, target: &Target, passes: u16, most: Option<u64>) -> Result<Probe> {
    let fail = |error: &_| Failure::client("read", target, error);
    let client = cx.connect(&target.location, Options { neighbours: 0, ..cx.options() })?;
    let page_size = client.page_size().map_err(|error| fail(&error))?;
    let file = client.open(&target.path).map_err(|error| fail(&error))?;
    let size = file.attr().map_err(|error| fail(&error))?.size;
    let pages = size.div_ceil(page_size as u64).min(most.unwrap_or(u64::MAX));
    let mut page = vec![0; page_size];
    let passes =
        (0..passes).map(|_| pass(&client, &file, &mut page, pages).map_err(|error| fail(&error)));
    let passes = passes.collect::<Result<Vec<_>>>()?;
    let trust = Trust::of(cx, target, Some(&client));
    Ok(Probe { choice: client.path_choice().clone(), trust, page_size, passes })
}

fn pass(client: &Client, file: &File, page: &mut [u8], pages: u64) -> dafs_client::Result<Pass> {
    let handler_calls = || -> dafs_client::Result<u64> {
        let counters = client.server_stats()?;
        Ok(counters.iter().find(|(name, _)| name == HANDLER_CALLS).map_or(0, |(_, count)| *count))
    };
    let (calls, before) = (handler_calls()?, client.counters());
    let mut times = Vec::new();
    let mut total = ReadReport::default();
    for block in 0..pages {
        let begun = Instant::now();
        let report = file.read_at_report(page, block * page.len() as u64)?;
        times.push(begun.elapsed());
        total.bytes += report.bytes;
        total.inline += report.inline;
        total.direct += report.direct;
        total.ordma += report.ordma;
        total.faults += report.faults;
        total.rearming += report.rearming;
        if report.bytes < page.len() {
            break;
        }
    }
    let handler_calls = handler_calls()?.saturating_sub(calls);
    let faults = faults(&before, &client.counters());
    times.sort_unstable();
    let quantile = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).copied().unwrap_or_default()
    };
    Ok(Pass {
        report: total,
        pages: times.len() as u64,
        faults,
        p50: quantile(50),
        p99: quantile(99),
        handler_calls,
    })
}

fn faults(before: &Snapshot, after: &Snapshot) -> Vec<(AccessFault, u64)> {
    let count = |fault| after.fault(fault).saturating_sub(before.fault(fault));
    let faults = AccessFault::ALL.into_iter().map(|fault| (fault, count(fault)));
    faults.filter(|(_, count)| *count > 0).collect()
}

impl Probe {
    /// For machines.
    pub fn json(&self) -> Json {
        Json::object([
            ("engine", Json::text(&self.choice.engine)),
            ("why", Json::text(&self.choice.why)),
            ("protection", self.trust.json()),
            ("page_size", Json::Number(self.page_size as i128)),
            ("passes", Json::Array(self.passes.iter().map(Pass::json).collect())),
        ])
    }
}

impl Pass {
    fn json(&self) -> Json {
        let micros = |time: Duration| Json::Decimal(time.as_secs_f64() * 1e6);
        let faults = self.faults.iter();
        let faults = faults.map(|(fault, count)| (fault.name().into(), Json::number(*count)));
        Json::object([
            ("pages", Json::number(self.pages)),
            ("bytes", Json::Number(self.report.bytes as i128)),
            ("inline", Json::number(self.report.inline)),
            ("direct", Json::number(self.report.direct)),
            ("ordma", Json::number(self.report.ordma)),
            ("faults", Json::Object(faults.collect())),
            ("rearming", Json::number(self.report.rearming)),
            ("p50_us", micros(self.p50)),
            ("p99_us", micros(self.p99)),
            ("handler_calls", Json::number(self.handler_calls)),
        ])
    }
}
