//! What guards pages and messages, by itself: no server, one CPU.
//!
//! Every row of a size works on the same few pages, which have just been copied to where it finds
//! them: they lie in the CPU's cache, as what has just been received or is about to be sent does.
//! That copy is not timed; it is a row of its own. Pages are sealed with AES-256-GCM over the
//! payload and 48 bytes of associated data, by aws-lc-rs; `ring` does the same for comparison.

mod ring_keys;

use crate::cli::Timing;
use crate::data::{Aligned, fill_any};
use crate::error::{Error, Result};
use crate::machine::date;
use crate::measure::{Block, Label, Plan, Subject, measure, prepared};
use crate::placement::{Awake, Placement, bind};
use crate::report::{Report, Row};
use crate::signals::Stop;
use dafs_client::keys::handshake::{Channel, Incoming, Initiator, Responder};
use dafs_client::keys::{Identity, PageKey, PageTagKey, Protection, ReadKey, Secret, clear_check};
use dafs_client::ordma::FOOTER_LEN;
use ring_keys::RingKey;
use std::fmt::Display;
use std::hint::black_box;
use std::time::Duration;

const PAGES: [usize; 5] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
/// Bytes of pages that a row works on in one go: it holds a page of any size, and is little enough
/// for the cache.
const GO: usize = 64 << 10;
/// Small operations that a row does in one go.
const SMALL_GO: usize = 16;

/// What is authenticated besides the payload: a footer without its check.
const HEAD: [u8; 48] = [0x5A; 48];
/// What a request says of a page: a reference and a version floor.
const REQUEST: usize = 40;
/// A small message of the channel.
const MESSAGE: usize = 128;

const SEAL: [&str; 2] = ["seal aws-lc-rs", "seal ring"];
const OPEN: [&str; 2] = ["open aws-lc-rs", "open ring"];

/// A result, and what it says in a word.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) report: Report,
    verdict: String,
}

impl Finding {
    /// The result for people.
    pub(crate) fn to_table(&self) -> String {
        format!("{}{}\n", self.report.to_fine_table(), self.verdict)
    }
}

/// Measures it all.
pub(crate) fn run(timing: &Timing, placement: &Placement, stop: &Stop) -> Result<Finding> {
    let date = date();
    bind(placement.client(0))?;
    let mut awake = Awake::new(timing.keep_awake, &placement.cpus(1))?;
    let mut rows = Vec::new();
    for size in PAGES {
        rows.extend(measure(&mut pages(size, stop)?, Plan::of(timing), &mut awake)?);
    }
    rows.extend(measure(&mut others(stop)?, Plan::of(timing), &mut awake)?);
    let command = format!("dafs-bench crypto{}", timing.command());
    let report = Report { rows, ..Report::of("crypto", command, date, timing, placement) };
    Ok(Finding { verdict: verdict(&report.rows), report })
}

/// Which library is faster.
fn verdict(rows: &[Row]) -> String {
    let nanos = |path: &str| {
        let row = rows.iter().find(|row| row.path == path && row.block == Some(4096));
        row.and_then(|row| row.p50_us).unwrap_or(f64::NAN) * 1000.0
    };
    let [ours, ring] = [0, 1].map(|library| nanos(SEAL[library]) + nanos(OPEN[library]));
    let (faster, by) =
        if ours <= ring { ("aws-lc-rs", ring / ours) } else { ("ring", ours / ring) };
    format!(
        "seal + open of 4 KiB: aws-lc-rs {ours:.0} ns, ring {ring:.0} ns: {faster} is faster, \
         {by:.2} x. Pages are sealed by aws-lc-rs."
    )
}

type Subjects<'a> = Vec<Box<dyn Subject + 'a>>;

/// An operation as a row.
struct Work<'a, F> {
    label: Label,
    stop: &'a Stop,
    /// Operations in one go, and what each of them gets to work on.
    count: usize,
    given: Vec<u8>,
    on: Aligned,
    operation: F,
}

impl<'a, F: FnMut(usize, &mut [u8]) -> Result<()> + 'a> Work<'a, F> {
    /// `operation` gets its number within a go and its part of a fresh copy of `given`, which holds
    /// `count` of them. The row counts `bytes` for each.
    fn row(
        path: &'static str,
        bytes: usize,
        (count, given): (usize, Vec<u8>),
        stop: &'a Stop,
        operation: F,
    ) -> Box<dyn Subject + 'a> {
        let label = Label { path, block: bytes as u64, depth: 1, clients: 1 };
        let on = Aligned::new(given.len());
        Box::new(Self { label, stop, count, given, on, operation })
    }
}

impl<F: FnMut(usize, &mut [u8]) -> Result<()>> Subject for Work<'_, F> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let Self { label, stop, count, given, on, operation } = self;
        let length = given.len() / *count;
        let amount = (*count as u64, label.block);
        let ready = |on: &mut Aligned| on.get_mut().copy_from_slice(given);
        prepared(time, stop, amount, on, ready, |on| {
            let on = on.get_mut();
            (0..*count).try_for_each(|i| operation(i, &mut on[i * length..(i + 1) * length]))
        })
    }
}

fn failed(error: impl Display) -> Error {
    Error::Keys(error.to_string())
}

/// What there is to do with a page of this size.
fn pages(size: usize, stop: &Stop) -> Result<Subjects<'_>> {
    let count = GO / size;
    let mut plain = vec![0; GO];
    fill_any(&mut plain);
    let mut tagged = vec![0; count * (FOOTER_LEN + size)];
    fill_any(&mut tagged);
    let (plain, tagged) = (|| (count, plain.clone()), || (count, tagged.clone()));
    let secret = Secret::random().map_err(failed)?;
    let key = || PageKey::new(0, secret.clone());
    let ring = || RingKey::new(&secret);
    let mac = secret.keyed();

    // The numbers of the pages that are opened are those of their places; others are above.
    let mut sealed = plain();
    let checks: Vec<[u8; 16]> = sealed
        .1
        .chunks_exact_mut(size)
        .enumerate()
        .map(|(i, page)| key().seal(i as u64, 1, &HEAD, page))
        .collect();
    let (sealed_again, again) = (sealed.clone(), checks.clone());

    let mut subjects: Subjects<'_> = Vec::new();
    let (by, mut number) = (key(), count as u64);
    subjects.push(Work::row(SEAL[0], size, plain(), stop, move |_, page| {
        number += 1;
        black_box(by.seal(number, 1, &HEAD, page));
        Ok(())
    }));
    let (by, mut number) = (ring(), count as u64);
    subjects.push(Work::row(SEAL[1], size, plain(), stop, move |_, page| {
        number += 1;
        black_box(by.seal(number, 1, &HEAD, page)?);
        Ok(())
    }));
    let by = key();
    subjects.push(Work::row(OPEN[0], size, sealed, stop, move |i, page| {
        by.open(i as u64, 1, &HEAD, &checks[i], page).map_err(failed)
    }));
    let by = ring();
    subjects.push(Work::row(OPEN[1], size, sealed_again, stop, move |i, page| {
        by.open(i as u64, 1, &HEAD, &again[i], page)
    }));
    subjects.push(Work::row("check xxh3", size, plain(), stop, |_, page| {
        black_box(clear_check(&HEAD, page));
        Ok(())
    }));
    let (by, mut number) = (PageTagKey::derive(&secret), 0);
    subjects.push(Work::row("gmac aws-lc-rs", size, tagged(), stop, move |_, page| {
        number += 1;
        black_box(by.tag(number, page));
        Ok(())
    }));
    let (by, mut number) = (ring(), 0);
    subjects.push(Work::row("gmac ring", size, tagged(), stop, move |_, page| {
        number += 1;
        black_box(by.seal(number, 0, page, &mut [])?);
        Ok(())
    }));
    subjects.push(Work::row("hmac-sha256", size, plain(), stop, move |_, page| {
        black_box(mac.tag("dafs bench", &[page]));
        Ok(())
    }));
    let mut to = Aligned::new(GO);
    subjects.push(Work::row("copy", size, plain(), stop, move |i, page| {
        to.get_mut()[i * size..(i + 1) * size].copy_from_slice(page);
        black_box(to.get());
        Ok(())
    }));
    Ok(subjects)
}

/// What there is to do with requests, keys and messages.
fn others(stop: &Stop) -> Result<Subjects<'_>> {
    let secret = Secret::random().map_err(failed)?;
    let some = |length: usize| (SMALL_GO, vec![0x5A; SMALL_GO * length]);
    let mut subjects: Subjects<'_> = Vec::new();

    let (key, mut number) = (ReadKey::new(0, secret.clone()), 0);
    subjects.push(Work::row("request tag", REQUEST, some(REQUEST), stop, move |_, fields| {
        number += 1;
        black_box(key.tag(&[1; 16], number, 0, fields));
        Ok(())
    }));
    subjects.push(Work::row("page key setup", 0, some(0), stop, move |_, _| {
        black_box(PageKey::new(0, black_box(&secret).clone()));
        Ok(())
    }));
    let [client, server] = [(); 2].map(|()| Identity::generate().map_err(failed));
    let sides = Sides { client: client?, server: server? };
    let (from, to) = sides.handshake()?;
    let (mut sealed, mut opened) = (Vec::new(), Vec::new());
    subjects.push(Work::row(
        "channel seal + open",
        MESSAGE,
        some(MESSAGE),
        stop,
        move |_, message| {
            sealed.clear();
            from.seal(message, &mut sealed);
            to.open(&sealed, &mut opened).map_err(failed)
        },
    ));
    subjects.push(Work::row("handshake", 0, (1, Vec::new()), stop, move |_, _| {
        sides.handshake().map(drop)
    }));
    Ok(subjects)
}

/// The two sides of a connection.
struct Sides {
    client: Identity,
    server: Identity,
}

impl Sides {
    /// What both sides of a handshake do; their channels.
    fn handshake(&self) -> Result<(Channel, Channel)> {
        let begun = Initiator::begin(&self.client, &self.server.public(), Protection::Sealed);
        let (initiator, begin) = begun.map_err(failed)?;
        let Incoming::Begun(responder) =
            Responder::receive(&self.server, &begin).map_err(failed)?
        else {
            return Err(failed("a handshake that was taken for a question"));
        };
        let (answer, server, _) = responder.accept().map_err(failed)?;
        let (client, _) = initiator.finish(&answer).map_err(failed)?;
        Ok((client, server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_measured_works() {
        let stop = Stop::default();
        let mut subjects = others(&stop).unwrap();
        for size in PAGES {
            subjects.extend(pages(size, &stop).unwrap());
        }
        for subject in &mut subjects {
            let block = subject.block(Duration::ZERO).unwrap();
            assert_eq!(block.bytes, block.ops * subject.label().block, "{:?}", subject.label());
        }
    }

    #[test]
    fn the_verdict_names_the_faster_library() {
        let row = |path: &str, micros| Row {
            path: path.into(),
            block: Some(4096),
            p50_us: Some(micros),
            ..Row::default()
        };
        let rows = [row(SEAL[0], 0.5), row(OPEN[0], 0.5), row(SEAL[1], 0.7), row(OPEN[1], 0.8)];
        let text = verdict(&rows);
        assert!(text.contains("aws-lc-rs 1000 ns, ring 1500 ns: aws-lc-rs is faster, 1.50 x"));
        assert!(text.ends_with("Pages are sealed by aws-lc-rs."));
    }
}
