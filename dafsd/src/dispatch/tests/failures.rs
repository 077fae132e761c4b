//! What is malformed, too much, or goes wrong on the way.

use super::*;

#[test]
fn a_message_that_is_none_ends_its_connection_only() {
    let world = world();
    let (other, _) = world.session();
    let good = message(&StatsRequest {}, 0, 1);
    let mut cases: Vec<Vec<u8>> = (0..Header::LEN).map(|len| good[..len].to_vec()).collect();
    // Magic, version, kind, status, a body that is not there, flags.
    for (at, value) in [(0, 0), (2, 9), (3, 2), (3, 9), (6, 1), (16, 1), (19, 0xFF), (20, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        cases.push(bad);
    }
    for case in cases {
        let link = world.link();
        world.connect_again(&link);
        assert!(world.raw(&link, &case, &[]).is_empty());
        assert!(!link.why_closed().is_empty(), "{case:?}");
        world.close(&link);
        world.pass(20);
    }
    assert!(other.why_closed().is_empty());
    world.call(&other, &StatsRequest {}, (0, 1)).unwrap();
}

#[test]
fn an_unknown_operation_is_answered_and_takes_its_number() {
    let world = world();
    let (link, _) = world.session();
    let mut head = message(&StatsRequest {}, 0, 1);
    head[4..6].copy_from_slice(&999u16.to_le_bytes());
    let sent = world.raw(&link, &head, &[]);
    let mut reply = sent[0].0.clone();
    assert_eq!(reply[4..6], 999u16.to_le_bytes());
    reply[4..6].copy_from_slice(&Op::Stats.number().to_le_bytes());
    let (header, body) = Header::decode(&reply).unwrap();
    assert_eq!((header.status, header.slot, header.sequence), (Status::UnknownOperation, 0, 1));
    assert!(ErrorReply::decode(body).unwrap().message.contains("999"));
    world.call(&link, &StatsRequest {}, (0, 2)).unwrap();
}

#[test]
fn a_body_of_the_wrong_form_is_refused() {
    let world = world();
    let (link, _) = world.session();
    for (sequence, op) in (1..).zip(Op::ALL.iter().filter(|op| **op != Op::Connect)) {
        let mut head = Vec::new();
        let body = [0x0A, 0xFF, 0x01];
        let body_len = body.len() as u32;
        Header { body_len, ..Header::request(*op, 0, sequence, 0) }.encode(&mut head);
        head.extend(body);
        let sent = world.raw(&link, &head, &[]);
        let (header, body) = Header::decode(&sent[0].0).unwrap();
        assert_eq!(header.status, Status::BadMessage, "{op}");
        assert!(ErrorReply::decode(body).unwrap().message.contains(op.name()));
    }
    let mut head = Vec::new();
    Header { body_len: 1, ..Header::request(Op::Connect, NO_SLOT, 1, 0) }.encode(&mut head);
    head.push(0xFF);
    let sent = world.raw(&world.link(), &head, &[]);
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::BadMessage);
}

#[test]
fn too_much_inline_data_is_refused() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let length = u64::from(SETTINGS.limits.max_inline) + 1;
    let extents = vec![Extent { offset: 0, length }];
    let write = WriteRequest { open, extents, ..Default::default() };
    let data = vec![1; length as usize];
    assert_eq!(status(world.call_with(&link, &write, (0, 2), &data)), Status::MessageTooBig);
    // It was not executed: the same number may come again, and so may the next.
    assert_eq!(status(world.call_with(&link, &write, (0, 2), &data)), Status::MessageTooBig);
    world.call(&link, &StatsRequest {}, (0, 3)).unwrap();
}

#[test]
fn a_transfer_that_breaks_leaves_the_request_to_be_repeated() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent { offset: 0, length: 5 }];
    let buffers = vec![Buffer { tag: 1, address: 0, length: 5 }];
    let write = WriteRequest { open, extents, placement: 1, buffers, ..Default::default() };
    let head = message(&write, 0, 2);
    assert!(world.raw(&link, &head, &[]).is_empty());
    let lost = || Err(LinkError::Closed("test".into()));
    let transfer = link.transfers.lock().remove(0);

    // The client comes back over a new connection while the transfer hangs: it hears nothing, and
    // is cut off when the transfer has failed, so that it asks once more.
    let resume = ConnectRequest { session: connect.session, ..connect_request("data") };
    let second = world.link();
    world.call(&second, &resume, (NO_SLOT, 1)).unwrap();
    world.close(&link);
    assert!(world.raw(&second, &head, &[]).is_empty());
    transfer.complete(lost());
    world.server.runtime().run_queued();
    assert!(second.why_closed().contains("resend"), "{}", second.why_closed());
    world.close(&second);

    let third = world.link();
    world.call(&third, &resume, (NO_SLOT, 1)).unwrap();
    assert!(world.raw(&third, &head, &[]).is_empty());
    let transfer = third.transfers.lock().remove(0);
    transfer.complete(Ok(b"WORLD".to_vec()));
    world.server.runtime().run_queued();
    let sent = third.take();
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::Ok);
    // And now it is done, once.
    assert_eq!(world.raw(&third, &head, &[]), sent);
    assert!(third.transfers.lock().is_empty());

    // A transfer that fails while the connection holds is an error like others.
    let next = message(&write, 0, 3);
    assert!(world.raw(&third, &next, &[]).is_empty());
    third.transfers.lock().remove(0).complete(lost());
    world.server.runtime().run_queued();
    let sent = third.take();
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::Transfer);
}

#[test]
fn a_panic_costs_one_error() {
    let world = world();
    let (link, _) = world.session();
    let head = message(&DisconnectRequest {}, 0, 1);
    let (header, _) = Header::decode(&head).unwrap();
    let link_dyn: Arc<dyn Link> = link.clone();
    let job = || {
        let (ticket, session, credits) = world.service.admit(&link_dyn, &header).unwrap();
        let _running = world.server.begin_request(Party::SERVER, 0).unwrap();
        let server = Arc::clone(&world.server);
        let cx = OpContext { server, session, link: link_dyn.clone(), slot: 0, data: Vec::new() };
        Job { cx, header, ticket, credits, replied: false, _running }
    };
    let first = job();
    world.server.runtime().run(async move {
        let result = caught(async {
            std::panic::resume_unwind(Box::new("test"));
            #[allow(unreachable_code)]
            Ok::<DisconnectReply, OpError>(DisconnectReply {})
        });
        first.finish::<DisconnectRequest>(result.await, |_| {});
    });
    let sent = link.take();
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::Io);
    // Whether it was executed is not known, so it is not executed again.
    assert_eq!(world.raw(&link, &head, &[]), sent);
    assert!(world.server.drain(Duration::ZERO), "nothing is under way any more");
}

#[test]
fn a_dropped_request_is_answered() {
    let world = world();
    let (link, _) = world.session();
    let head = message(&RenewRequest::default(), 0, 1);
    let (header, _) = Header::decode(&head).unwrap();
    let link_dyn: Arc<dyn Link> = link.clone();
    let (ticket, session, credits) = world.service.admit(&link_dyn, &header).unwrap();
    let _running = world.server.begin_request(Party::SERVER, 0).unwrap();
    let cx = OpContext {
        server: Arc::clone(&world.server),
        session,
        link: link_dyn,
        slot: 0,
        data: vec![],
    };
    drop(Job { cx, header, ticket, credits, replied: false, _running });
    assert_eq!(Header::decode(&link.take()[0].0).unwrap().0.status, Status::Io);
    assert!(world.server.drain(Duration::ZERO));
}

#[test]
fn a_request_whose_session_ends_meanwhile_is_not_said_to_be_undone() {
    let world = world();
    let (link, _) = world.session();
    let head = message(&OpenRequest::default(), 0, 1);
    let (header, _) = Header::decode(&head).unwrap();
    let link_dyn: Arc<dyn Link> = link.clone();
    let (ticket, session, credits) = world.service.admit(&link_dyn, &header).unwrap();
    let _running = world.server.begin_request(Party::SERVER, 0).unwrap();
    let cx = OpContext {
        server: Arc::clone(&world.server),
        session: Arc::clone(&session),
        slot: 0,
        link: link_dyn,
        data: vec![],
    };
    let job = Job { cx, header, ticket, credits, replied: false, _running };
    // The file was created, then the session ended: there is nowhere to enter the open.
    world.server.end_session(&session, false);
    let late = OpError::new(Status::BadSession, "the session has ended");
    job.finish::<OpenRequest>(Ok::<Result<OpenReply, _>, Panicked>(Err(late)), |_| {});
    assert!(link.take().is_empty(), "no reply says that nothing was done");
    assert!(!link.why_closed().is_empty());
    assert!(session.is_over());
    assert!(world.server.drain(Duration::ZERO));
}

/// Nothing is there to be told of, and the server goes on.
#[test]
fn a_commit_from_the_largest_offset_on_is_told_like_any_other() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent { offset: 3, length: 4 }];
    let write = WriteRequest { open, extents, ..Default::default() };
    world.call_with(&link, &write, (0, 2), b"LONG").unwrap();
    // The reply is not known to have arrived, for the slot is not used again.
    world.call(&link, &CommitRequest { open, ..Default::default() }, (1, 1)).unwrap();
    let extent = Some(Extent { offset: u64::MAX, length: 0 });
    for sequence in 3..6 {
        let commit = CommitRequest { open, extent, ..Default::default() };
        world.call(&link, &commit, (0, sequence)).unwrap();
    }
}
