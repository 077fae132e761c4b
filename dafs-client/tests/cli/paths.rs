//! Which engine is taken, and which path serves a file.

use crate::harness::{Server, Setup};

/// A number of a JSON text, by the place of its name.
fn number(json: &str, name: &str, place: usize) -> u64 {
    let after = json.split(&format!("\"{name}\":")).nth(place + 1).expect(name);
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Reads a file, `/file`, twice over an engine: the first time by RPC, the second one-sidedly.
#[track_caller]
pub fn second_pass_costs_nothing(server: &Server, engine: &str) {
    server.file("file", vec![5; 300 * 4096 + 1]);
    let json =
        server.ok(["--engine", engine, "stat", "--path", "--pages", "all", "--json", "/file"]);
    assert!(json.contains(&format!(r#""served":{{"engine":"{engine}","#)), "{json}");
    let pages = number(&json, "pages", 0);
    let page_size = number(&json, "page_size", 0);
    assert_eq!(pages, (300 * 4096 + 1_u64).div_ceil(page_size));
    assert_eq!(number(&json, "inline", 0) + number(&json, "direct", 0), pages, "{json}");
    assert_eq!(number(&json, "ordma", 0), 0, "{json}");
    assert!(number(&json, "handler_calls", 0) >= 1, "{json}");
    assert_eq!(number(&json, "ordma", 1), pages, "{json}");
    assert_eq!(number(&json, "rearming", 1), 0, "{json}");
    assert_eq!(number(&json, "handler_calls", 1), 0, "{json}");
    assert_eq!(number(&json, "bytes", 1), 300 * 4096 + 1, "{json}");
}

#[test]
fn the_second_pass_costs_the_server_nothing() {
    let server = Server::start();
    for engine in ["tcp", "shm"] {
        second_pass_costs_nothing(&server, engine);
    }
    let text = server.ok(["stat", "-p", "--pages", "7", "--passes", "3", "/file"]);
    assert!(text.contains("engine shm: the server is on this host"), "{text}");
    assert!(
        text.contains("pass 1 7 pages of 4096 bytes: 7 inline, 0 direct, 0 ordma; faults: none")
    );
    assert!(text.contains("pass 3 7 pages of 4096 bytes: 0 inline, 0 direct, 7 ordma"), "{text}");
    assert!(text.contains("handler calls 0"), "{text}");
}

#[test]
fn an_empty_file_has_no_pages() {
    let server = Server::start();
    server.file("empty", "");
    let text = server.ok(["stat", "--path", "/empty"]);
    assert!(text.contains("pass 2 0 pages of 4096 bytes"), "{text}");
}

#[test]
fn the_doctor_tells_what_is_possible_and_taken() {
    let server = Server::start();
    let text = server.ok(["doctor"]);
    assert!(text.contains("   tcp yes connected;") && text.contains("   shm yes connected;"));
    // The server does not listen for it, whether this host has a device or not.
    assert!(text.contains("\n verbs no  "), "{text}");
    assert!(text.contains(" taken shm: the server is on this host, reached by /"), "{text}");
    let text = server.ok(["doctor", "--engine", "tcp"]);
    assert!(text.contains(" taken tcp: it was asked for"), "{text}");
    let json = server.ok(["doctor", "--json"]);
    assert!(json.contains(r#""taken":{"engine":"shm","#), "{json}");
    assert!(json.contains(r#"{"engine":"verbs","usable":false,"why":""#), "{json}");
    assert!(json.contains(r#""rdma_devices":["#), "{json}");
}

#[test]
fn without_shared_memory_tcp_is_taken() {
    let server = Server::start_with(Setup { without_shm: true, ..Setup::default() });
    server.file("a", "x");
    let text = server.ok(["doctor"]);
    assert!(text.contains("   shm no  the server offers no shared memory\n"), "{text}");
    let why = "the server offers no shared memory; the server does not listen on verbs";
    assert!(text.contains(&format!(" taken tcp: {why}")), "{text}");
    assert_eq!(server.ok(["cat", "/a"]), "x");
    let error = server.fails(1, ["--engine", "shm", "cat", "/a"]);
    assert!(error.contains(": the server offers no shared memory; use --engine tcp"), "{error}");
    let error = server.fails(1, ["--engine", "verbs", "cat", "/a"]);
    assert!(error.starts_with("dafs: cannot connect to ") && error.contains("; use --engine tcp"));
    // A socket that is not there.
    let socket = server.local("no socket");
    let socket = socket.to_str().unwrap();
    let error = server.fails(1, ["--engine", "shm", "--socket", socket, "cat", "/a"]);
    assert!(error.starts_with("dafs: cannot connect to "), "{error}");
}
