//! Handshakes: whatever a peer sends, nothing panics, and nobody is taken for someone else.
//!
//! The first byte of the input says what is done with the rest: it is the packet itself, or it is
//! laid over a good one (exclusive or), so that the fuzzer gets past the cryptography's door.

#![no_main]

use dafs_keys::handshake::{self, Channel, Incoming, Initiator, Responder};
use dafs_keys::{Identity, Protection, Secret};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CLIENT: LazyLock<Identity> =
    LazyLock::new(|| Identity::from_secret(Secret::from_bytes([1; 32])));
static SERVER: LazyLock<Identity> =
    LazyLock::new(|| Identity::from_secret(Secret::from_bytes([2; 32])));

fn begin() -> (Initiator, Vec<u8>) {
    Initiator::begin(&CLIENT, &SERVER.public(), Protection::Sealed).expect("good keys")
}

fn respond(packet: &[u8]) -> Option<Box<Responder>> {
    match Responder::receive(&SERVER, packet) {
        Ok(Incoming::Begun(responder)) => Some(responder),
        Ok(Incoming::Asked(answer)) => {
            assert_eq!(handshake::asked(&answer), Ok(SERVER.public()));
            None
        }
        Err(_) => None,
    }
}

fn laid_over(good: &[u8], mask: &[u8]) -> Vec<u8> {
    let masks = mask.iter().copied().chain(std::iter::repeat(0));
    good.iter().zip(masks).map(|(byte, mask)| byte ^ mask).collect()
}

fn channels() -> (Channel, Channel) {
    let (initiator, packet) = begin();
    let (answer, server, _) = respond(&packet).expect("a good packet").accept().expect("random");
    let (client, _) = initiator.finish(&answer).expect("a good answer");
    (client, server)
}

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    match what % 6 {
        0 => drop(respond(rest)),
        1 => {
            let _ = handshake::asked(rest);
            assert!(begin().0.finish(rest).is_err(), "an answer out of thin air");
        }
        2 => {
            let packet = begin().1;
            let changed = laid_over(&packet, rest);
            assert_eq!(respond(&changed).is_some(), changed == packet);
        }
        3 => {
            let (initiator, packet) = begin();
            let (answer, _, _) = respond(&packet).expect("good").accept().expect("random");
            let changed = laid_over(&answer, rest);
            assert_eq!(initiator.finish(&changed).is_ok(), changed == answer);
        }
        4 => {
            let (_, server) = channels();
            assert!(server.open(rest, &mut Vec::new()).is_err(), "a message out of thin air");
        }
        _ => {
            let (client, server) = channels();
            let mut sealed = Vec::new();
            client.seal(rest, &mut sealed);
            let changed = laid_over(&sealed, &rest[rest.len() / 2..]);
            let mut out = Vec::new();
            let opened = server.open(&changed, &mut out);
            assert_eq!(opened.is_ok(), changed == sealed);
            assert!(opened.is_err() || out == rest);
        }
    }
});
