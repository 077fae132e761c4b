//! The check of a page in the clear.

use twox_hash::XxHash3_128;

/// Length of a page's check in bytes.
pub const CHECK_LEN: usize = 16;

/// Computes the check of a page at protection level `none`: XXH3-128 over the first 48 bytes of the
/// footer followed by the XXH3-128 of the payload.
///
/// Hashing the payload by itself keeps it in place (the footer lies elsewhere) and on the one-shot
/// path of the hash, which is several times faster than streaming for 4 KiB. 128 bits are needed:
/// with 32, torn copies of a page that is overwritten at full speed pass within seconds.
#[must_use]
pub fn clear_check(footer: &[u8; 48], payload: &[u8]) -> [u8; CHECK_LEN] {
    let mut input = [0u8; 64];
    input[..48].copy_from_slice(footer);
    input[48..].copy_from_slice(&XxHash3_128::oneshot(payload).to_le_bytes());
    XxHash3_128::oneshot(&input).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_every_byte() {
        let mut footer = [1u8; 48];
        let mut payload = vec![2u8; 4096];
        let good = clear_check(&footer, &payload);
        for i in 0..48 {
            footer[i] ^= 0x10;
            assert_ne!(good, clear_check(&footer, &payload), "footer byte {i}");
            footer[i] ^= 0x10;
        }
        for i in 0..payload.len() {
            payload[i] ^= 0x01;
            assert_ne!(good, clear_check(&footer, &payload), "payload byte {i}");
            payload[i] ^= 0x01;
        }
        assert_eq!(good, clear_check(&footer, &payload));
    }

    #[test]
    fn is_what_it_was() {
        // Other processes read it: it must not change between builds. The value is that of another
        // implementation of XXH3.
        let check = clear_check(&[0; 48], &[0; 4096]);
        assert_eq!(u128::from_le_bytes(check), 302_218_749_510_644_940_507_058_701_304_493_725_314);
    }
}
