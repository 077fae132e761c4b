//! Sessions: who may speak, over what, and what comes twice.

use super::*;

#[test]
fn requests_of_no_session_are_refused() {
    let world = world();
    let link = world.link();
    assert_eq!(status(world.call(&link, &StatsRequest {}, (0, 1))), Status::BadSession);
    let connect = connect_request("data");
    assert_eq!(status(world.call(&link, &connect, (0, 1))), Status::BadSlot);
    let wrong = ConnectRequest { version: 9, ..connect.clone() };
    assert_eq!(status(world.call(&link, &wrong, (NO_SLOT, 1))), Status::Version);
    let (code, text) = world.call(&link, &connect_request("none"), (NO_SLOT, 1)).unwrap_err();
    assert_eq!(code, Status::NoExport);
    assert!(text.contains("none") && text.contains("data, frozen"), "{text}");
    for protection in [0, 2, 3, 77] {
        let wrong = ConnectRequest { protection, ..connect.clone() };
        let (code, text) = world.call(&link, &wrong, (NO_SLOT, 1)).unwrap_err();
        assert_eq!(code, Status::Protection);
        assert!(text.contains("\"data\"") && text.contains("none"), "{text}");
    }
    let wrong = ConnectRequest { session: vec![1; 15], ..connect.clone() };
    assert_eq!(status(world.call(&link, &wrong, (NO_SLOT, 1))), Status::Invalid);

    world.connect(&link);
    assert_eq!(status(world.call(&link, &connect, (NO_SLOT, 2))), Status::Invalid);
    assert_eq!(status(world.call(&link, &StatsRequest {}, (3, 1))), Status::BadSlot);
    assert_eq!(status(world.call(&link, &StatsRequest {}, (0, 2))), Status::BadSequence);
    assert_eq!(world.server.session_counts().0, 1);
}

#[test]
fn a_reply_is_sent_again_and_the_work_not_done_again() {
    let world = world();
    let (link, connect) = world.session();
    let mkdir = MkdirRequest { directory: connect.root.clone(), name: b"d".to_vec(), attr: None };
    let head = message(&mkdir, 0, 1);
    let first = world.raw(&link, &head, &[]);
    assert_eq!(world.raw(&link, &head, &[]), first);
    world.close(&link);

    // Over a new connection, too.
    let again = world.link();
    let resume = ConnectRequest { session: connect.session.clone(), ..connect_request("data") };
    let reply = world.call(&again, &resume, (NO_SLOT, 1)).unwrap();
    assert!(reply.resumed);
    assert_eq!((reply.session, reply.boot, reply.slots), (connect.session, connect.boot, 3));
    assert_eq!(world.raw(&again, &head, &[]), first);
    assert_eq!(status(world.call(&again, &mkdir, (0, 2))), Status::Exists);
    assert_eq!(status(world.call(&again, &mkdir, (0, 2))), Status::Exists);

    // What only reads is done again.
    let lookup = LookupRequest { directory: connect.root, name: b"d".to_vec() };
    world.call(&again, &lookup, (0, 3)).unwrap();
    std::fs::remove_dir(world.directory.path().join("d")).unwrap();
    assert_eq!(status(world.call(&again, &lookup, (0, 3))), Status::NoEntry);
}

#[test]
fn a_session_goes_on_over_a_new_connection_only() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    let resume = ConnectRequest { session: connect.session.clone(), ..connect_request("data") };
    let other_export = ConnectRequest { export: "frozen".into(), ..resume.clone() };
    let again = world.link();
    assert_eq!(status(world.call(&again, &other_export, (NO_SLOT, 1))), Status::Invalid);
    assert!(world.call(&again, &resume, (NO_SLOT, 1)).unwrap().resumed);
    assert!(link.why_closed().contains("anew"), "{}", link.why_closed());
    assert!(!*link.may_read.lock() && *again.may_read.lock());
    assert_eq!(status(world.call(&link, &StatsRequest {}, (1, 1))), Status::BadSession);
    world.close(&link);
    let getattr = GetAttrRequest { handle: open.handle };
    world.call(&again, &getattr, (1, 1)).unwrap();
    assert_eq!(world.server.session_counts(), (1, 1));

    world.call(&again, &DisconnectRequest {}, (0, 2)).unwrap();
    assert_eq!(world.server.session_counts(), (0, 0));
    assert!(!*again.may_read.lock());
    assert_eq!(status(world.call(&again, &getattr, (1, 2))), Status::BadSession);
    assert!(!world.call(&again, &resume, (NO_SLOT, 1)).unwrap().resumed);
}

#[test]
fn sessions_and_connections_are_bounded_and_end_in_time() {
    let world = world();
    let (first, connect) = world.session();
    let (_second, _) = world.session();
    let third = world.link();
    let (code, text) = world.call(&third, &connect_request("data"), (NO_SLOT, 1)).unwrap_err();
    assert_eq!(code, Status::TooManySessions);
    assert!(text.contains('2') && text.contains("sessions.max"), "{text}");
    let fourth = world.link();
    assert!(world.link().why_closed().contains("too many"));

    world.pass(6);
    assert!(fourth.why_closed().contains("no session"));
    assert!(first.why_closed().is_empty());
    world.close(&first);
    world.pass(9);
    let resume = ConnectRequest { session: connect.session, ..connect_request("data") };
    assert!(world.call(&third, &resume, (NO_SLOT, 1)).unwrap().resumed);
    world.close(&third);
    world.pass(11);
    assert_eq!(world.server.session_counts().0, 1);
    let fifth = world.link();
    assert!(!world.call(&fifth, &resume, (NO_SLOT, 1)).unwrap().resumed);
}

#[test]
fn silent_connections_give_way_to_those_of_other_addresses() {
    let world = world();
    let silent: Vec<_> = (0..4).map(|_| world.link_from("10.0.0.1")).collect();
    let closed = || silent.iter().filter(|link| !link.why_closed().is_empty()).count();
    assert!(world.link_from("10.0.0.1").why_closed().contains("too many"));
    let other = world.link_from("10.0.0.2");
    assert!(other.why_closed().is_empty());
    assert_eq!(closed(), 1);
    world.connect(&other);
    world.link_from("10.0.0.3");
    assert_eq!(closed(), 2);
    // They have as many as anyone now.
    assert!(world.link_from("10.0.0.3").why_closed().contains("too many"));
    // Who has been silent for some time gives way to its neighbours, too.
    world.pass(2);
    assert!(world.link_from("10.0.0.1").why_closed().is_empty());
    assert_eq!(closed(), 3);
    assert!(other.why_closed().is_empty());
}

#[test]
fn opens_are_bounded_and_say_what_they_allow() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    world.open(&link, &connect.root, (0, 2));
    let request = OpenRequest { handle: open.handle.clone(), access: 1, ..OpenRequest::default() };
    assert_eq!(status(world.call(&link, &request, (0, 3))), Status::TooManyOpenFiles);
    world.call(&link, &CloseRequest { open: open.open }, (0, 4)).unwrap();
    let readable = world.call(&link, &request, (0, 5)).unwrap();
    let extents = vec![Extent { offset: 0, length: 1 }];
    let write = WriteRequest { open: readable.open, extents, ..Default::default() };
    assert_eq!(status(world.call_with(&link, &write, (0, 6), b"x")), Status::BadOpen);
    for (sequence, wrong) in (7..).zip([
        OpenRequest { access: 0, ..request.clone() },
        OpenRequest { access: 4, ..request.clone() },
        OpenRequest { truncate: true, ..request.clone() },
        OpenRequest { create: 1, ..request.clone() },
        OpenRequest { create: 9, ..request.clone() },
    ]) {
        world.call(&link, &CloseRequest { open: readable.open }, (1, sequence - 6)).ok();
        assert_eq!(status(world.call(&link, &wrong, (0, sequence))), Status::Invalid);
    }
}
