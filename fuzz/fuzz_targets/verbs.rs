//! What an RDMA peer sends: whatever packets and private data it makes up, nothing panics, no message
//! exceeds the limits, and nothing outside of a buffer or a chunk is touched.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    match what % 3 {
        0 => ordma::fuzz::from_client(rest),
        1 => ordma::fuzz::from_server(rest),
        _ => ordma::fuzz::private_data(rest),
    }
});
