//! What the file may say, what is said of what it may not, and what becomes of a changed one.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn parse(text: &str) -> Authorized {
    Authorized::parse(text, true).unwrap()
}

fn one(options: &str) -> Client {
    let authorized = parse(&format!("{} c {options}", key(1)));
    authorized.lookup(&key(1)).unwrap().clone()
}

fn user(uid: u32, gid: u32, groups: &[u32]) -> Credential {
    Credential::User { uid, gid, groups: groups.into() }
}

fn asks(uid: u32) -> AskedCredential {
    AskedCredential { uid, gid: 7, groups: vec![8, 9] }
}

#[test]
fn a_file_has_clients_and_comments() {
    let text = format!(
        "# all of them\n\n{} web-1 exports=data:rw,logs:ro uid=1000  # the first\n\
         \t{}\tb.2_x uids=any exports=*\n",
        key(1),
        key(2)
    );
    let authorized = parse(&text);
    assert_eq!(authorized.iter().count(), 2);
    assert_eq!(authorized.lookup(&key(1)).unwrap().name, "web-1");
    assert_eq!(authorized.named("b.2_x").unwrap().key, key(2));
    assert_eq!((authorized.lookup(&key(3)), authorized.named("web")), (None, None));
    assert_eq!(parse(""), Authorized::default());
}

#[test]
fn rights_are_those_of_the_export_or_of_all_others() {
    let rights = |options: &str, export| one(&format!("{options} uid=1")).rights(export);
    let (ro, rw) = (Some(Rights::ReadOnly), Some(Rights::ReadWrite));
    assert_eq!(rights("exports=data", "data"), rw);
    assert_eq!(rights("exports=data:rw,logs:ro", "logs"), ro);
    assert_eq!(rights("exports=data:rw,logs:ro", "other"), None);
    assert_eq!(rights("exports=*", "other"), rw);
    assert_eq!(rights("exports=*:ro,data", "other"), ro);
    assert_eq!(rights("exports=*:ro,data", "data"), rw);
    assert_eq!(rights("exports=data:ro,*", "data"), ro);
}

#[test]
fn a_fixed_user_is_not_the_clients_to_choose() {
    let client = one("exports=* uid=1000 gid=50 gids=4,24");
    assert_eq!(client.credential(None), Ok(user(1000, 50, &[4, 24])));
    for asked in [0, 1000, 1001] {
        let error = client.credential(Some(&asks(asked))).unwrap_err();
        assert!(error.contains(&asked.to_string()) && error.contains("\"c\""), "{error}");
    }
    assert_eq!(one("exports=* uid=1000").credential(None), Ok(user(1000, 1000, &[])));
    assert_eq!(one("exports=* uid=0").credential(None), Ok(user(0, 0, &[])), "asked for by name");

    let text = format!("{} c exports=*", key(1));
    let own = Authorized::parse(&text, false).unwrap();
    let own = own.lookup(&key(1)).unwrap();
    assert_eq!(own.credential(None), Ok(Credential::Server));
    assert!(own.credential(Some(&asks(1000))).is_err());
}

#[test]
fn users_to_choose_from_have_bounds_and_root_is_none_by_itself() {
    let cases: &[(&str, &[u32], &[u32])] = &[
        ("uids=1000-2000", &[1000, 1500, 2000], &[0, 999, 2001, u32::MAX]),
        ("uids=0-5", &[0, 5], &[6]),
        ("uids=7-7", &[7], &[6, 8]),
        ("uids=any", &[1, 1000, u32::MAX - 1], &[0, u32::MAX]),
        ("uids=any root=no", &[1], &[0]),
        ("uids=any root=yes", &[0, 1, u32::MAX - 1], &[u32::MAX]),
    ];
    for (options, allowed, refused) in cases {
        let client = one(&format!("exports=* {options}"));
        for uid in *allowed {
            assert_eq!(client.credential(Some(&asks(*uid))), Ok(user(*uid, 7, &[8, 9])));
        }
        for uid in *refused {
            let error = client.credential(Some(&asks(*uid))).unwrap_err();
            assert!(error.contains(&format!("uid {uid},")), "{options}: {error}");
        }
        assert!(client.credential(None).unwrap_err().contains("must ask"), "{options}");
    }
    let client = one("exports=* uids=any");
    for asked in [
        AskedCredential { gid: u32::MAX, ..asks(5) },
        AskedCredential { groups: vec![1, u32::MAX], ..asks(5) },
        AskedCredential { groups: vec![1; MAX_GROUPS + 1], ..asks(5) },
    ] {
        client.credential(Some(&asked)).unwrap_err();
    }
}

/// Each bad line, and what its error must contain: the word and what is allowed.
#[test]
fn errors_name_line_word_and_what_is_allowed() {
    let long = "n".repeat(65);
    let many = format!("gids={}", vec!["1"; MAX_GROUPS + 1].join(","));
    let cases: &[(&str, &[&str])] = &[
        ("KEY", &["KEY NAME exports="]),
        ("short c exports=* uid=1", &["\"short\"", "public key", "43"]),
        ("KEY a/b exports=* uid=1", &["\"a/b\"", "letters"]),
        (&format!("KEY {long} exports=* uid=1"), &[&long, "1 to 64"]),
        ("KEY c uid=1", &["exports= is missing"]),
        ("KEY c exports= uid=1", &["exports=", "name of an export"]),
        ("KEY c exports=a,,b uid=1", &["exports=a,,b", "name of an export"]),
        ("KEY c exports=a/b uid=1", &["exports=a/b", "name of an export"]),
        ("KEY c exports=a:wo uid=1", &["\"a:wo\"", ":ro or :rw"]),
        ("KEY c exports=a:ro:rw uid=1", &["\"a:ro:rw\"", ":ro or :rw"]),
        ("KEY c exports=a,a:ro uid=1", &["\"a:ro\"", "twice"]),
        ("KEY c exports=*,*:ro uid=1", &["\"*:ro\"", "twice"]),
        ("KEY c exports=a exports=b uid=1", &["exports=b", "twice"]),
        ("KEY c exports=* uid=1 admin=yes", &["admin=yes", "must be one of exports="]),
        ("KEY c exports=* uid=1 ro", &["\"ro\"", "must be one of exports="]),
        ("KEY c exports=*", &["\"c\"", "runs as root", "add uid=N"]),
        ("KEY c exports=* uid=", &["uid=", "number from 0"]),
        ("KEY c exports=* uid=+1", &["uid=+1", "number from 0"]),
        ("KEY c exports=* uid=4294967295", &["uid=4294967295", "4294967294"]),
        ("KEY c exports=* uid=1 gid=x", &["gid=x", "number"]),
        ("KEY c exports=* uid=1 gids=1,", &["gids=", "number"]),
        (&format!("KEY c exports=* uid=1 {many}"), &["gids=", "1024"]),
        ("KEY c exports=* gid=1", &["gid=", "uid= only"]),
        ("KEY c exports=* uids=1-2 gids=1", &["gids=", "uid= only"]),
        ("KEY c exports=* uid=1 uids=1-2", &["uids=1-2", "beside uid="]),
        ("KEY c exports=* uid=1 root=yes", &["root=", "uids=any"]),
        ("KEY c exports=* root=yes", &["root=", "uids=any"]),
        ("KEY c exports=* uids=1-2 root=yes", &["root=", "uids=any"]),
        ("KEY c exports=* uids=any root=1", &["root=1", "yes or no"]),
        ("KEY c exports=* uids=5", &["uids=5", "\"any\" or a range"]),
        ("KEY c exports=* uids=5-4", &["uids=5-4", "range"]),
        ("KEY c exports=* uids=-4", &["uids=-4", "range"]),
        ("KEY c exports=* uids=1-4294967295", &["4294967295", "range"]),
        ("KEY other exports=* uid=1", &["key must not be given twice"]),
        ("OTHER good exports=* uid=1", &["\"good\"", "name must not be given twice"]),
    ];
    for (line, expected) in cases {
        let line = line.replace("KEY", &key(1).to_string()).replace("OTHER", &key(2).to_string());
        // The good line in front: where it must not collide, it is another client's.
        let collides = line.contains("other") || line.contains("good");
        let good = if collides { key(1) } else { key(9) };
        let text = format!("{good} good exports=* uid=1\n\n{line}\n");
        let error = Authorized::parse(&text, true).expect_err(&line);
        assert_eq!(error.line, 3, "{line}");
        let error = error.to_string();
        for part in *expected {
            assert!(error.contains(part), "{part:?} is not in the error for\n{line}\n{error}");
        }
    }
}

#[test]
fn what_was_taken_away_is_known() {
    let line =
        |number: u8, name: &str, options: &str| format!("{} {name} {options}\n", key(number));
    let exports = ["data", "logs"];
    let revoked = |old: &str, new: &str| {
        let revoked = parse(old).revoked(&parse(new), exports.into_iter());
        revoked.into_iter().map(|r| (r.name, r.exports.join(","))).collect::<Vec<_>>()
    };
    let both = [("a".to_owned(), "data,logs".to_owned())];
    let data = [("a".to_owned(), "data".to_owned())];
    let base = line(1, "a", "exports=* uid=5") + &line(2, "b", "exports=data uid=6");
    assert_eq!(revoked(&base, &base), []);
    assert_eq!(revoked(&base, &line(1, "a", "exports=* uid=5")), [("b".into(), "data".into())]);
    let without_a = line(2, "b", "exports=data uid=6");
    assert_eq!(revoked(&base, &without_a), both);
    let with_a = |number, name, options| without_a.clone() + &line(number, name, options);
    assert_eq!(revoked(&base, &with_a(1, "a", "exports=logs uid=5")), data);
    assert_eq!(revoked(&base, &with_a(1, "a", "exports=logs,data:ro uid=5")), data);
    assert_eq!(revoked(&base, &with_a(1, "a", "exports=logs,data,more uid=5")), []);
    for changed in ["exports=* uid=7", "exports=* uid=5 gid=1", "exports=* uids=5-5"] {
        assert_eq!(revoked(&base, &with_a(1, "a", changed)), both, "{changed}");
    }
    assert_eq!(revoked(&base, &with_a(1, "c", "exports=* uid=5")), both, "another name");
    assert_eq!(revoked(&base, &with_a(3, "a", "exports=* uid=5")), both, "another key");
    // Gains take nothing away.
    let less = with_a(1, "a", "exports=data:ro uid=5");
    assert_eq!(revoked(&less, &base), []);
    assert_eq!(revoked("", &base), []);
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn each_version_of_the_file_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authorized_clients");
    let (mut file, authorized) = AuthorizedFile::open(&path, true).unwrap();
    assert_eq!(authorized, Authorized::default());
    assert!(!file.exists() && file.reread(false).is_none());

    write(&path, &format!("{} a exports=* uid=1\n", key(1)));
    let read = file.reread(false).unwrap().unwrap();
    assert!(read.named("a").is_some() && file.exists());
    assert!(file.reread(false).is_none(), "nothing new");
    assert_eq!(file.reread(true).unwrap().unwrap(), read, "asked for by name");

    write(&path, "nonsense");
    let error = file.reread(false).unwrap().unwrap_err().to_string();
    assert!(error.contains("authorized_clients, line 1") && error.contains("nonsense"), "{error}");
    assert!(file.reread(false).is_none(), "told of once");

    // Editors put another file in its place.
    let new = directory.path().join("new");
    write(&new, &format!("{} b exports=* uid=1\n", key(1)));
    std::fs::rename(&new, &path).unwrap();
    assert!(file.reread(false).unwrap().unwrap().named("b").is_some());

    std::fs::remove_file(&path).unwrap();
    assert!(matches!(file.reread(false), Some(Err(AuthorizedError::Io { .. }))));
    assert!(file.reread(false).is_none() && file.reread(true).unwrap().is_err());
    write(&path, "# nobody\n");
    assert_eq!(file.reread(false).unwrap().unwrap(), Authorized::default());
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authorized_clients");
    write(&path, "");
    let (mut file, _) = AuthorizedFile::open(&path, true).unwrap();
    for mode in [0o664, 0o646, 0o622] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = AuthorizedFile::open(&path, true).unwrap_err().to_string();
        assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod go-w"), "{error}");
    }
    assert!(file.reread(false).unwrap().is_err(), "permissions make another version");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    file.reread(false).unwrap().unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        let error = AuthorizedFile::open(&path, true).unwrap_err().to_string();
        assert!(error.contains("4711"), "{error}");
    }
}

#[test]
fn a_link_in_the_place_of_the_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("authorized_clients"), directory.path().join("o"));
    write(&other, "");
    AuthorizedFile::open(&other, true).unwrap();
    let (mut file, _) = AuthorizedFile::open(&path, true).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    let error = AuthorizedFile::open(&path, true).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("symbolic link"), "{error}");
    assert!(file.reread(false).unwrap().is_err());
    assert!(file.reread(false).is_none(), "told of once");
}
