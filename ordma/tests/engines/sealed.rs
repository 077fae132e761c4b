//! Sealed pages: whatever lies in exported memory, and whoever put it there, a reader gets a page of
//! its file whole or a fault.

use crate::harness::*;
use crate::simulated;
use dafs_keys::{FileKey, PageKey, Protection, Secret};
use ordma::{AccessFault, FOOTER_LEN, Slot};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn all(test: impl Fn(&World, &Client)) {
    for row in [Row::tcp(), Row::shm(), simulated::row()] {
        let world = World::new(&row.sealed());
        test(&world, &world.client());
    }
}

fn bytes_of(slot: &Slot) -> ([u8; PAGE], [u8; FOOTER_LEN]) {
    let (mut payload, mut footer) = ([0; PAGE], [0; FOOTER_LEN]);
    slot.copy_out(&mut payload, &mut footer);
    (payload, footer)
}

#[test]
fn another_key_opens_nothing() {
    all(|world, client| {
        let (slot, reference) = world.page(3);
        assert!(bytes_of(&slot).0 != [3; PAGE], "it lies there sealed");
        assert_eq!(client.read_one(reference), Ok(3));
        let key =
            |secret: &Secret, epoch, file| FileKey::Sealed(PageKey::derive(secret, epoch, file));
        let revoked = Err(AccessFault::Revoked);
        assert_eq!(client.read_with(key(&world.session, EPOCH + 1, FILE), reference), revoked);
        let torn = Err(AccessFault::Torn);
        // Footers bear 16 bits of the epoch, keys the whole of it.
        assert_eq!(client.read_with(key(&world.session, EPOCH + (1 << 16), FILE), reference), torn);
        assert_eq!(client.read_with(key(&world.session, EPOCH, FILE + 1), reference), torn);
        let other = Secret::random().unwrap();
        assert_eq!(client.read_with(key(&other, EPOCH, FILE), reference), torn);
        assert_eq!(client.read_with(FileKey::Clear, reference), torn);
    });
}

#[test]
fn the_clear_is_not_taken_for_the_sealed() {
    all(|world, client| {
        let (slot, reference) = world.page(3);
        let payload = [4; PAGE];
        let footer = ordma::Footer {
            kind: ordma::Kind::Data,
            sealed: false,
            last: false,
            epoch: world.key.footer_epoch(),
            valid: PAGE as u32,
            file: FILE,
            block: reference.block,
            generation: reference.generation,
            version: 9,
        };
        slot.write(&payload, &footer.encode(&payload));
        assert_eq!(client.read_one(reference), Err(AccessFault::Torn));
        // Nor with the flag set, and the check of the clear.
        let mut footer = footer.encode(&payload);
        footer[4] |= 1;
        let (head, check) = footer.split_first_chunk_mut::<48>().unwrap();
        check.copy_from_slice(&dafs_keys::clear_check(head, &payload));
        slot.write(&payload, &footer);
        assert_eq!(client.read_one(reference), Err(AccessFault::Torn));
    });
}

#[test]
fn no_bit_of_a_slot_can_be_flipped() {
    all(|world, client| {
        let (slot, reference) = world.page(3);
        let (payload, footer) = bytes_of(&slot);
        let bits = (PAGE + FOOTER_LEN) * 8;
        let some = (0..300).map(|_| fastrand::usize(..bits));
        for bit in some.chain(PAGE * 8..bits) {
            let (mut payload, mut footer) = (payload, footer);
            match bit / 8 {
                byte if byte < PAGE => payload[byte] ^= 1 << (bit % 8),
                byte => footer[byte - PAGE] ^= 1 << (bit % 8),
            }
            slot.write(&payload, &footer);
            assert!(client.read_one(reference).is_err(), "bit {bit}");
        }
        slot.write(&payload, &footer);
        assert_eq!(client.read_one(reference), Ok(3));
    });
}

#[test]
fn what_was_in_another_slot_or_before_is_not_taken() {
    all(|world, client| {
        let (a, first) = world.page(3);
        let (b, second) = world.page(4);
        let (in_a, in_b) = (bytes_of(&a), bytes_of(&b));
        a.write(&in_b.0, &in_b.1);
        b.write(&in_a.0, &in_a.1);
        let stale = Err(AccessFault::Stale);
        assert_eq!((client.read_one(first), client.read_one(second)), (stale, stale));
        // The footer of one with the payload of the other.
        a.write(&in_b.0, &in_a.1);
        assert_eq!(client.read_one(first), Err(AccessFault::Torn));

        a.write(&in_a.0, &in_a.1);
        world.refill(&a, 5, first.generation, 7);
        assert_eq!(client.read(&[(first, 7)]), [Ok((5, 7))]);
        let newer = bytes_of(&a);
        a.write(&in_a.0, &in_a.1);
        assert_eq!(client.read(&[(first, 7)]), [Err(AccessFault::Stale)]);
        // With the newer version's number, or the newer footer, on the older payload.
        let mut footer = in_a.1;
        footer[40] = 7;
        a.write(&in_a.0, &footer);
        assert_eq!(client.read(&[(first, 7)]), [Err(AccessFault::Torn)]);
        a.write(&in_a.0, &newer.1);
        assert_eq!(client.read(&[(first, 7)]), [Err(AccessFault::Torn)]);
    });
}

/// Rewrites a few pages as fast as it goes while they are read, several at a time.
fn rewrite_while_reading(row: Row, time: Duration) {
    let world = World::new(&row.sealed());
    let client = world.client();
    let pages: Vec<_> = (0..8).map(|_| world.page(0)).collect();
    let done = AtomicBool::new(false);
    let (mut good, mut torn) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1.. {
                for (slot, reference) in &pages {
                    world.refill(slot, version as u8, reference.generation, version);
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let start = Instant::now();
        let mut floors = [0; 8];
        while start.elapsed() < time || good < 20 {
            let asked: Vec<_> = pages
                .iter()
                .zip(floors)
                .map(|((_, reference), floor)| (*reference, floor))
                .collect();
            // `read` checks that the bytes of each page are alike.
            for (floor, outcome) in floors.iter_mut().zip(client.read(&asked)) {
                match outcome {
                    Ok((byte, version)) => {
                        assert_eq!(byte, version as u8);
                        assert!(version >= *floor);
                        (good, *floor) = (good + 1, version);
                    }
                    Err(fault) => {
                        assert_eq!(fault, AccessFault::Torn);
                        torn += 1;
                    }
                }
            }
            assert!(start.elapsed() < time + PATIENCE, "only {good} good reads");
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{}: {good} whole pages, {torn} torn ones", row_name(&world));
}

fn row_name(world: &World) -> &'static str {
    assert_eq!(world.level, Protection::Sealed);
    world.engine.name()
}

/// What opening a page takes, in nanoseconds: tells which code does it.
fn opening() -> u128 {
    let key = PageKey::derive(&Secret::from_bytes([1; 32]), 1, 2);
    let mut payload = [7; PAGE];
    let check = key.seal(3, 4, &[0; 48], &mut payload);
    let sealed = payload;
    let start = Instant::now();
    for _ in 0..20_000 {
        payload = sealed;
        key.open(3, 4, &[0; 48], &check, &mut payload).unwrap();
    }
    start.elapsed().as_nanos() / 20_000
}

const CHILD: &str = "ORDMA_TEST_AEAD";

/// Not a test of its own: runs in a process where the AEAD does without some instructions.
#[test]
fn rewriting_process() {
    let Ok(without) = std::env::var(CHILD) else { return };
    println!("\nwithout {without}: a page is opened in {} ns", opening());
    another_key_opens_nothing();
    no_bit_of_a_slot_can_be_flipped();
    for row in [Row::shm(), Row::tcp()] {
        rewrite_while_reading(row, Duration::from_millis(400));
    }
}

/// AWS-LC has several implementations of AES-GCM, which load their input in different patterns; of
/// some it may even load twice. What the variable takes away is named by the bits of CPUID: those of
/// leaf 1 (EDX, and ECX in the upper half), then those of leaf 7 (EBX and ECX).
#[test]
fn whichever_instructions_the_aead_has() {
    // VAES, VPCLMULQDQ and AVX-512 (F, DQ, BW, VL), which come first wherever they are there.
    const WIDE: &str = "~0x600c0030000";
    // As perf shows, the code is `aes_gcm_decrypt_avx512`; `_aesni_ctr32_ghash_6x`, for which it
    // takes both AVX and MOVBE; else `aes_hw_ctr32_encrypt_blocks` with `gcm_ghash_clmul`; and
    // `vpaes_ctr32_encrypt_blocks` with `gcm_ghash_ssse3`.
    let masks = [
        ("nothing", "~0x0".to_owned()),
        ("VAES and AVX-512", format!("~0x0:{WIDE}")),
        ("AVX", format!("~0x1000000000000000:{WIDE}")),
        ("MOVBE", format!("~0x40000000000000:{WIDE}")),
        ("AES and PCLMULQDQ", format!("~0x200000200000000:{WIDE}")),
    ];
    for (without, mask) in masks {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sealed::rewriting_process", "--nocapture"])
            .env(CHILD, without)
            .env("OPENSSL_ia32cap", mask)
            .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let told = text.lines().filter(|line| line.contains("without") || line.contains("whole"));
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), 3, "{text}");
        println!("{}", told.join("\n"));
    }
}
