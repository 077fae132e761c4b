//! Files are read to their end one-sidedly, wherever another client moves it.

mod common;

use common::{Over, PAGE, TestServer, create, pattern, read_to_end, served};

over_every_engine!(every_size_ends_without_an_rpc);

fn every_size_ends_without_an_rpc(over: Over) {
    let server = TestServer::start(over);
    let (writer, reader) = (server.client(), server.client());
    let sizes = [0, 1, 4095, 4096, 4097, 3 * 4096];
    for (number, size) in sizes.into_iter().enumerate() {
        let name = format!("file{number}");
        let written = create(&writer, &name);
        let mut content = pattern(size, 1);
        written.write_all_at(&content, 0).unwrap();
        let file = reader.open(&name).unwrap();
        let expect = |content: &[u8], what: &str| {
            // The first look may need an RPC, the second one must not.
            for block in [PAGE, 100, 3 * PAGE, 1 << 16] {
                assert!(read_to_end(&file, block) == content, "{name} {what}, {block} at a time");
                let (bytes, by) = served(&reader, || read_to_end(&file, block));
                assert!(bytes == content, "{name} {what}, {block} at a time");
                assert_eq!(
                    (by.rpcs, by.faults),
                    (0, 0),
                    "{name} {what}, {block} at a time: {by:?}"
                );
            }
        };
        expect(&content, "as written");
        for next in sizes.into_iter().rev() {
            if next > content.len() {
                let more = pattern(next - content.len(), 2);
                written.write_all_at(&more, content.len() as u64).unwrap();
                content.extend(more);
            } else {
                written.set_len(next as u64).unwrap();
                content.truncate(next);
            }
            expect(&content, &format!("resized to {next}"));
        }
    }
}
