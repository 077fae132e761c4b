//! Comparing a copy with what was copied.

use crate::failure::{Failure, Result};
use crate::target::Target;
use dafs_client::blocking::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Compares a file of the server, read by RPC, with a local one.
pub fn compare(
    block: &mut [u8],
    remote: &File,
    target: &Target,
    local: &std::fs::File,
    path: &Path,
) -> Result {
    let fail = |error: &_| Failure::client("verify", target, error);
    let (theirs, ours) = block.split_at_mut(block.len() / 2);
    let mut at = 0;
    loop {
        let mut read = remote.read_at_by(theirs, at, dafs_client::Path::Direct);
        if let Err(error) = &read
            && error.status() == Some(dafs_client::Status::Transfer)
        {
            // There is no memory for it here, say.
            read = remote.read_at_by(theirs, at, dafs_client::Path::Inline);
        }
        let count = read.map_err(|error| fail(&error))?.bytes;
        let mut filled = 0;
        while filled < ours.len() {
            let read = local.read_at(&mut ours[filled..], at + filled as u64);
            match read.map_err(|error| Failure::local("verify", path, &error))? {
                0 => break,
                count => filled += count,
            }
        }
        if count != filled || theirs[..count] != ours[..filled] {
            let same = theirs[..count].iter().zip(&ours[..filled]).take_while(|(a, b)| a == b);
            let why = format!("the copy differs from byte {} on", at + same.count() as u64);
            let advice = "copy it again while nobody changes it";
            return Err(Failure::new("verify", target, why, advice));
        }
        if count == 0 {
            return Ok(());
        }
        at += count as u64;
    }
}
