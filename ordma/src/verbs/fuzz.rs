//! What a peer sends on a connection, taken by the halves that receive it, without a device.
//!
//! The queue pair is left out: each packet is handed to what the server's event loop and the client's
//! lane hand theirs to, in the same order, and the receive that it took counts as posted again.

use super::chunks::Chunks;
use super::credits::{Credits, LEAST_WINDOW};
use super::hello::{ClientHello, Refusal, Welcome};
use super::link::{Adverts, MOST_ADVERTS};
use super::packet::{Assembled, Assembly, Header, Packet, Piece, Record};
use super::server::WINDOW;
use super::target::{Advert, Target};
use crate::RemoteRef;
use crate::arena::Geometry;
use crate::engine::ReadAccess;
use crate::gate::Gate;
use crate::stream::frame::Limits;
use dafs_keys::Secret;
use std::sync::Arc;

const LIMITS: Limits = Limits { head: 1 << 10, data: 16 << 10 };
/// Receives of one's own that the peer knows of.
const OWN: u32 = 4;

/// Splits input into packets, each after its length.
fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = bytes.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (packet, rest) = rest.split_at(len);
        bytes = rest;
        Some(packet)
    })
}

/// One side's receiving half.
struct Half {
    credits: Credits,
    assembly: Assembly,
    /// Bytes of messages that have come and are not handed on.
    kept: usize,
}

impl Half {
    fn new() -> Self {
        Self { credits: Credits::new(OWN, LEAST_WINDOW), assembly: Assembly::default(), kept: 0 }
    }

    /// Takes a packet, whose records `hear` takes. The error is what the connection ends with.
    fn take(
        &mut self,
        bytes: &[u8],
        mut hear: impl FnMut(Record) -> Result<(), String>,
    ) -> Result<(), String> {
        let packet = Packet::decode(bytes).map_err(|bad| bad.to_string())?;
        let told = self.credits.told(packet.header.told, packet.has_content(), true);
        told.map_err(|bad| bad.to_string())?;
        let mut again = Vec::new();
        for record in packet.records() {
            let record = record.map_err(|bad| bad.to_string())?;
            record.encode(&mut again);
            hear(record)?;
        }
        let records = u16::try_from(again.len()).unwrap_or(u16::MAX);
        let again = [&Header { records, ..packet.header }.encode()[..], &again, packet.message];
        assert_eq!(again.concat(), bytes, "read as what would be written in another way");
        self.kept += packet.message.len();
        match self.assembly.take(&packet, LIMITS)? {
            Assembled::Nothing => {
                let most = self.assembly.gathering().map_or(0, |message| message.bytes);
                assert!(self.kept <= most && most <= LIMITS.head + LIMITS.data);
            }
            Assembled::Here(head, data) => {
                assert_eq!(head.len() + data.len(), self.kept);
                assert!(head.len() <= LIMITS.head && data.len() <= LIMITS.data);
                self.kept = 0;
            }
            Assembled::Gathered(bytes, head) => {
                assert_eq!(bytes.len(), self.kept);
                assert!(head <= LIMITS.head && bytes.len() - head <= LIMITS.data);
                self.kept = 0;
            }
        }
        Ok(())
    }

    /// Answers as the sending half does: what is to be said, and the credits that are owed.
    fn answer(&mut self) {
        if self.credits.may_send() {
            self.credits.send(true);
        }
        if self.credits.owes() {
            let told = self.credits.send(false);
            assert!(u32::from(told.granted) >= OWN.div_ceil(2) && !self.credits.owes());
        }
    }
}

/// Packets of a client, at the server.
///
/// # Panics
/// If a message exceeds the limits, a transfer would leave the buffer that it is for, or a proof is
/// accepted.
pub fn from_client(bytes: &[u8]) {
    let (mut half, mut adverts) = (Half::new(), Adverts::default());
    let mut gate = Gate::new([1; 16]);
    let access = ReadAccess { connection: Some(Secret::from_bytes([2; 32])), session: None };
    if gate.allow(Some(Arc::new(access))).is_err() {
        return;
    }
    let mut there = 0;
    for packet in packets(bytes) {
        let taken = half.take(packet, |record| match record {
            Record::Advert(tag, pieces) => {
                let advert = Advert::new(pieces.clone());
                adverts.add(tag, &advert)?;
                there += 1;
                assert!(there <= MOST_ADVERTS);
                transfers(&advert, &pieces);
                Ok(())
            }
            Record::Withdraw(tag) => {
                there -= usize::from(adverts.remove(tag));
                Ok(())
            }
            Record::Proof(proof) => {
                let wrong = gate.prove(proof).expect_err("a proof out of thin air");
                Err(wrong.to_string())
            }
            Record::LetGo(_) | Record::Rearm(..) => Ok(()),
            other => Err(format!("a server's record: {other:?}")),
        });
        if taken.is_err() {
            return;
        }
        half.answer();
    }
}

/// A transfer of the whole buffer, and one from its middle on, fill it and do not leave it.
fn transfers(advert: &Arc<Advert>, pieces: &[Piece]) {
    let room = advert.room();
    for offset in [0, room / 2] {
        let mut target = Target::new(advert, offset);
        let mut moved = offset;
        while let Some((remote, len)) = target.next(1 << 30) {
            let inside = pieces.iter().any(|piece| {
                let start = remote.address.wrapping_sub(piece.remote.address);
                remote.key == piece.remote.key
                    && start.saturating_add(len as u64) <= piece.len.into()
            });
            assert!(len > 0 && inside, "beside the buffer");
            moved += len as u64;
        }
        assert_eq!(moved, room);
    }
}

/// Packets of a server, at a client.
///
/// # Panics
/// If a message exceeds the limits, or a page would be read beside its chunk.
pub fn from_server(bytes: &[u8]) {
    let Ok(geometry) = Geometry::new(4096, 4 * 4096) else { return };
    let (mut half, mut chunks) = (Half::new(), Chunks::new(geometry));
    for packet in packets(bytes) {
        let taken = half.take(packet, |record| {
            match record {
                Record::Chunk(id, remote) => {
                    chunks.add(id, remote)?;
                    let found = |slot| {
                        let reference =
                            RemoteRef { chunk: id, slot, file: 1, block: 1, generation: 1 };
                        chunks.find(&reference)
                    };
                    for slot in [0, 3] {
                        let Ok(place) = found(slot) else {
                            assert!(!chunks.is_allowed());
                            continue;
                        };
                        let end = |at: u64, len| at.wrapping_sub(remote.address) + len;
                        let len = geometry.chunk_len() as u64;
                        assert!(end(place.payload.address, 4096) <= len);
                        assert!(end(place.footer.address, 64) <= len);
                    }
                    assert!(found(4).is_err(), "a slot that the chunk does not have");
                }
                Record::Retire(id) => chunks.retire(id),
                Record::Allow => chunks.allow(),
                Record::Revoke => chunks.revoke(),
                Record::Placed(..) | Record::Withdrawn(_) | Record::Rearmed(..) => {}
                other => return Err(format!("a client's record: {other:?}")),
            }
            Ok(())
        });
        if taken.is_err() {
            return;
        }
        half.answer();
    }
}

/// The private data of a connection: what a client says, and what a server answers.
///
/// # Panics
/// If what was read is not what it says when it is written again, or names what no server has.
pub fn private_data(bytes: &[u8]) {
    if let Ok(hello) = ClientHello::decode(bytes) {
        assert_eq!(ClientHello::decode(&hello.encode()), Ok(hello));
    }
    if let Ok(welcome) = Welcome::decode(bytes) {
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        // What the client sizes its own buffers by.
        assert!((4096..=1 << 20).contains(&welcome.packet));
        assert!(welcome.geometry.chunk_len() <= (1 << 20) * (65536 + 64));
        let mut credits = Credits::new(WINDOW, welcome.window.into());
        for _ in 0..welcome.window {
            credits.send(true);
        }
        assert!(!credits.may_send());
    }
    if let Some(refusal) = Refusal::decode(bytes) {
        assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
    }
}
