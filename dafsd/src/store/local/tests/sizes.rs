//! How large files can be.

use super::*;
use std::process::Command;
use std::time::{Duration, SystemTime};

fn created(store: &LocalStore) -> Arc<dyn StoreFile> {
    let create = store.create(SERVER, &store.root(), b"f", &exclusive(SetAttr::default()));
    create.unwrap().1.unwrap()
}

/// The size is the largest that the file takes, and its last byte can be written.
fn is_largest(file: &dyn StoreFile, most: u64) {
    file.set_len(most).unwrap();
    file.write_at(b"x", most - 1).unwrap();
    if most < i64::MAX as u64 {
        assert_eq!(status(file.set_len(most + 1)), Status::FileTooBig);
        assert_eq!(status(file.write_at(b"x", most)), Status::FileTooBig);
    }
    assert_eq!(file.attr().unwrap().size, most);
}

#[test]
fn the_largest_size_is_one_that_the_file_takes() {
    each(|world| {
        let file = created(&world.store);
        let most = file.max_size();
        assert_eq!(file.max_size(), most, "as it was found out");
        assert!(most > 1 << 31);
        is_largest(&*file, most);
        // The offset that was used to find it out is used by nothing else.
        file.set_len(0).unwrap();
        file.write_at(b"hello", 0).unwrap();
        let mut bytes = [0; 9];
        assert_eq!(file.read_at(&mut bytes, 1).unwrap(), 4);
        assert_eq!(&bytes[..4], b"ello");
    });
}

/// A file system in an image, mounted until it is dropped.
struct Mounted(TempDir);

impl Mounted {
    fn ext4(block: u32) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        let (image, at) = (mounted.0.path().join("image"), mounted.path());
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-b", &block.to_string()]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        mounted
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
#[ignore = "mounts an image through a loop device, as root"]
fn the_largest_size_on_ext4_is_what_its_blocks_can_be_numbered() {
    for (block, about) in [(1024, 4 << 40), (4096, 16 << 40)] {
        let mounted = Mounted::ext4(block);
        let store = LocalStore::new(&mounted.path(), LocalOptions::default()).unwrap();
        let file = created(&store);
        let most = file.max_size();
        assert!(most <= about && most >= about - 2 * u64::from(block), "{most}");
        is_largest(&*file, most);
    }
}

#[test]
fn who_may_only_write_sets_the_time_to_now() {
    assert!(rustix::process::geteuid().is_root(), "this test acts as other users: run it as root");
    each(|world| {
        world.file("f", b"1");
        let path = world.path("f");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let handle = world.store.lookup(SERVER, &world.root(), b"f").unwrap().handle;
        let file = world.store.open(SERVER, &handle, Access::ReadWrite).unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        file.set_mtime(past).unwrap();
        assert_eq!(file.attr().unwrap().mtime.unwrap().seconds, 1000);
        // A server that is not root, and not the owner.
        let who = Credential::User { uid: 4242, gid: 4242, groups: Arc::from([]) };
        who.run(|| file.set_mtime(past)).expect("now can be set");
        assert!(file.attr().unwrap().mtime.unwrap().seconds > 1000);
    });
}
