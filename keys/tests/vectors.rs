//! The derivation tree as literal bytes, computed by other implementations of HMAC-SHA256 and
//! AES-256-GCM: peers of the same version have to agree on every one of them.

use dafs_keys::secret::Secret;
use dafs_keys::{HandleKey, PageKey, ReadKey};

const EPOCH: u64 = 3;
const FILE: u64 = 0x1122_3344_5566_7788;

/// The secret whose bytes count up from `first`.
fn secret(first: u8) -> Secret {
    Secret::from_bytes(std::array::from_fn(|i| first + i as u8))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connection's nonce.
fn nonce() -> [u8; 16] {
    std::array::from_fn(|i| i as u8)
}

#[test]
fn page_keys_and_sealed_pages() {
    let key = PageKey::derive(&secret(0), EPOCH, FILE);
    assert_eq!(
        hex(key.secret().expose()),
        "d64d75b4da4474c6a7915c7d83e1afa7cf6a569d203223661522799290efd392"
    );
    let footer: [u8; 48] = std::array::from_fn(|i| i as u8);
    let mut payload: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    let check = key.seal(0x0102_0304_0506_0708, 9, &footer, &mut payload);
    assert_eq!(hex(&check), "6ec0c388032872266934aee404fc5e3b");
    assert_eq!(hex(&payload[..16]), "e7161c347651d9b26e39b86596cf582b");
    assert_eq!(hex(&payload[4080..]), "05f99999fad3e1b47183dc14b20c6f9b");
}

#[test]
fn read_keys_and_request_tags() {
    let key = ReadKey::derive(&secret(32).keyed(), EPOCH, FILE);
    assert_eq!(
        hex(key.secret().expose()),
        "4d65435a2e92fb52148cd2fd6e4f0fcb162fd697a17b85423aefe4b7a4b53e91"
    );
    assert_eq!(hex(&key.tag(&nonce(), 7, 2, b"fields")), "31895c7145131405bf3fd6fd5067c979");
}

#[test]
fn what_a_connection_derives_from_its_secret() {
    let connection = secret(64);
    let proof = connection.keyed().tag("dafs second connection", &[&nonce()]);
    assert_eq!(hex(&proof), "1ba500ad9bdfcc8a6726ea08c9446a8d");
    for (label, context, expected) in [
        (
            "dafs one-sided reply",
            &[&nonce()[..]][..],
            "7a7736e14f68b630e1d026b6d15c2b1d21a8b80031838f974be57a41857573ce",
        ),
        ("dafs page tag", &[], "832be7551d6e15a9e9efc982779c676f707d5f79bbbc48190b7e72107dff2a56"),
        (
            "dafs write data",
            &[],
            "6dbcfb063a69918d41ea4f4aba658b6c6d825dbdd1683520b103db772025fd16",
        ),
    ] {
        assert_eq!(hex(connection.derive(label, context).expose()), expected, "{label}");
    }
}

#[test]
fn handles() {
    let state = secret(96);
    let key = state.derive("dafs handle", &[b"export-1"]);
    assert_eq!(
        hex(key.expose()),
        "78d412409c4528013b1d395d73bc9c975bc59834c95ba4e3f927b99c61598afc"
    );
    let wire = HandleKey::derive(&state, b"export-1").sign(b"a handle");
    assert_eq!(hex(&wire[8..]), "423c6bddc394b3fb97baf2be48b6b363");
}
