//! Footers: whatever lies in a slot, nothing panics, and only what was sealed is accepted.

#![no_main]

use dafs_keys::{FileKey, PageKey, Secret};
use libfuzzer_sys::fuzz_target;
use ordma::slot::{FOOTER_LEN, Footer, Kind, accept, open};
use ordma::RemoteRef;
use std::sync::LazyLock;

const PAGE: usize = 256;

fn page_key() -> PageKey {
    PageKey::derive(&Secret::from_bytes([1; 32]), 7, 5)
}

static KEY: LazyLock<FileKey> = LazyLock::new(|| FileKey::Sealed(page_key()));

const GOOD: Footer = Footer {
    kind: Kind::Data,
    sealed: true,
    last: true,
    epoch: 7,
    valid: 200,
    file: 5,
    block: 6,
    generation: 8,
    version: 9,
};

fn reference(footer: &Footer) -> RemoteRef {
    let Footer { file, block, generation, .. } = *footer;
    RemoteRef { chunk: 0, slot: 0, file, block, generation }
}

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    let mut footer = [0; FOOTER_LEN];
    let mut payload = vec![0; PAGE];
    let split = rest.len().min(FOOTER_LEN);
    match what % 3 {
        // Anything at all.
        0 => {
            footer[..split].copy_from_slice(&rest[..split]);
            let len = (rest.len() - split).min(PAGE);
            payload[..len].copy_from_slice(&rest[split..][..len]);
            if let Some(fields) = Footer::decode(&footer) {
                let _ = accept(&footer, &mut payload.clone(), &reference(&fields), 0, &FileKey::Clear);
            }
            assert!(open(&footer, &mut payload, &KEY).is_err(), "a page out of thin air");
        }
        // A sealed page, changed.
        1 => {
            let good = GOOD.seal(&mut payload, &page_key());
            let sealed = payload.clone();
            footer = good;
            footer.iter_mut().zip(rest).for_each(|(byte, mask)| *byte ^= mask);
            payload.iter_mut().zip(&rest[split..]).for_each(|(byte, mask)| *byte ^= mask);
            let same = footer == good && payload == sealed;
            let accepted = accept(&footer, &mut payload, &reference(&GOOD), 9, &KEY);
            assert_eq!(accepted.is_ok(), same);
            assert!(accepted.is_err() || payload == [0; PAGE]);
        }
        // A footer survives its own encoding.
        _ => {
            footer[..split].copy_from_slice(&rest[..split]);
            // What a fuzzer does not guess.
            footer[..4].copy_from_slice(&GOOD.encode(&payload)[..4]);
            if let Some(fields) = Footer::decode(&footer)
                && !fields.sealed
            {
                let again = fields.encode(&payload);
                assert_eq!(again[..48], footer[..48]);
                let fits = fields.valid as usize <= PAGE;
                assert_eq!(open(&again, &mut payload, &FileKey::Clear).is_ok(), fits);
            }
        }
    }
});
