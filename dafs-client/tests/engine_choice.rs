//! Which engine is taken, and what is said about it.

mod common;

use common::{Server, options};
use dafs_client::blocking::Client;
use dafs_client::{Connectors, Location, Options, Protection, Result};
use ordma::Connector;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// The servers behind the TCP address and behind the socket, for this thread's test.
    static SERVERS: RefCell<Option<[Server; 2]>> = const { RefCell::new(None) };
}

fn connector(which: usize) -> Arc<dyn Connector> {
    SERVERS.with_borrow(|servers| servers.as_ref().unwrap()[which].connector())
}

fn connect(location: &str, tcp: &Server, shm: &Server) -> Result<Client> {
    SERVERS.set(Some([tcp.clone(), shm.clone()]));
    let location: Location = location.parse()?;
    let connectors =
        Connectors { tcp: |_| connector(0), shm: |_| connector(1), ..Connectors::default() };
    Client::connect_with(
        &location,
        Options { protection: Protection::Sealed, ..options() },
        connectors,
    )
}

const AUTO: &str = "dafs://host/data?protection=none";

#[test]
fn shared_memory_is_taken_where_the_same_server_is_behind_its_socket() {
    let socket = tempfile::NamedTempFile::new().unwrap();
    let server = Server::new();
    server.state().shm_socket = socket.path().to_str().unwrap().into();
    let client = connect(AUTO, &server, &server).unwrap();
    assert_eq!(client.path_choice().engine, "shm");
    assert!(client.path_choice().why.contains("on this host"), "{}", client.path_choice());
    assert_eq!(server.state().sessions.len(), 1, "the session over tcp has ended");
}

#[test]
fn otherwise_tcp_is_taken_and_the_reason_said() {
    let socket = tempfile::NamedTempFile::new().unwrap();
    let path = socket.path().to_str().unwrap();
    let (server, other) = (Server::new(), Server::new());
    other.state().boot = 7;
    let check = |shm: &Server, offered: &str, why: &str| {
        server.state().shm_socket = offered.into();
        let client = connect(AUTO, &server, shm).unwrap();
        assert_eq!(client.path_choice().engine, "tcp");
        assert!(client.path_choice().why.contains(why), "{}", client.path_choice());
    };
    check(&server, "", "offers no shared memory");
    check(&server, "/nowhere/socket", "is not on this host");
    check(&other, path, "another server");
    let refusing = Server::new();
    refusing.state().refuse = true;
    check(&refusing, path, "not usable: ");
}

#[test]
fn an_engine_that_is_asked_for_is_taken_or_the_connection_fails() {
    let server = Server::new();
    let client = connect("dafs://host/data?protection=none&engine=tcp", &server, &server).unwrap();
    assert_eq!(client.path_choice().to_string(), "tcp: it was asked for");
    let location = "dafs://host/data?protection=none&engine=shm&socket=/s";
    assert_eq!(connect(location, &server, &server).unwrap().path_choice().engine, "shm");
    let location = "dafs://host/data?protection=none&engine=shm";
    let error = connect(location, &server, &server).unwrap_err().to_string();
    assert!(error.contains("socket=/path"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let location = "dafs://127.0.0.1:1/data?protection=none&engine=tcp";
    let error = Client::connect(location, Options::default()).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert_eq!(error.errno(), 113);
}
