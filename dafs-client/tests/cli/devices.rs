//! Over an RDMA device, whose address is in `DAFS_RDMA_ADDRESS` (default 10.9.9.1).

use crate::harness::{Server, Setup};
use crate::paths::second_pass_costs_nothing;

fn start(without_shm: bool) -> Server {
    Server::start_with(Setup { verbs: true, without_shm, ..Setup::default() })
}

#[test]
fn the_second_pass_over_verbs_costs_the_server_nothing() {
    second_pass_costs_nothing(&start(false), "verbs");
}

#[test]
fn a_device_is_taken_before_tcp_and_after_shared_memory() {
    let server = start(true);
    let text = server.ok(["doctor"]);
    assert!(text.contains("\n verbs yes connected; a request took "), "{text}");
    assert!(text.contains("\ndevice ") && text.contains(" active, MTU "), "{text}");
    let why = format!(" reaches {}", server.address("verbs"));
    let taken = text.lines().find(|line| line.starts_with(" taken verbs: ")).expect("verbs");
    assert!(taken.contains("RDMA device") && taken.ends_with(&why), "{taken}");
    let json = server.ok(["doctor", "--json"]);
    assert!(json.contains(r#""rdma_devices":[{"name":""#), "{json}");
    assert!(json.contains(r#""taken":{"engine":"verbs","#), "{json}");

    let text = start(false).ok(["doctor"]);
    assert!(text.contains("\n verbs yes connected;"), "{text}");
    assert!(text.contains("\n taken shm: the server is on this host"), "{text}");
}

#[test]
fn a_location_may_name_the_address_of_verbs_or_of_tcp() {
    let server = start(true);
    server.file("a", "x");
    // The server tells where it listens for verbs.
    assert_eq!(server.ok(["--engine", "verbs", "cat", "/a"]), "x");
    let url = format!("dafs://{}/data/a?engine=verbs&{}", server.address("verbs"), server.query);
    assert_eq!(server.ok(["cat", &url]), "x");
    let text = server.ok(["stat", "--path", &url]);
    assert!(text.contains("  engine verbs: it was asked for"), "{text}");
}
