//! Who is let in, and what is said to those who are not.

use super::*;

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn clients() -> String {
    format!("{} web exports=data,logs:ro uid=1000\n{} mount exports=* uids=any\n", key(1), key(2))
}

#[test]
fn permits_and_refusals() {
    let access = Access::of(Authorized::parse(&clients(), true).unwrap());
    let asked = AskedCredential { uid: 7, gid: 8, groups: vec![9] };
    let user = |uid, gid, groups: &[u32]| Credential::User { uid, gid, groups: groups.into() };
    let permit = |number, name: &str, read_only, credential| Permit {
        name: name.to_owned(),
        key: key(number),
        read_only,
        credential,
    };
    let web = user(1000, 1000, &[]);
    assert_eq!(access.permit(&key(1), "data", None).unwrap(), permit(1, "web", false, web.clone()));
    assert_eq!(access.permit(&key(1), "logs", None).unwrap(), permit(1, "web", true, web));
    let mount = access.permit(&key(2), "logs", Some(&asked)).unwrap();
    assert_eq!(mount, permit(2, "mount", false, user(7, 8, &[9])));

    let root = AskedCredential { uid: 0, ..asked.clone() };
    let unknown = key(3).to_string();
    let cases = [
        (3, "data", None, Status::Access, [&*unknown, "authorized_clients"]),
        (1, "other", None, Status::NoExport, ["\"other\"", "\"web\""]),
        (1, "data", Some(&asked), Status::Access, ["\"web\"", "uid 7"]),
        (2, "data", None, Status::Access, ["\"mount\"", "must ask"]),
        (2, "data", Some(&root), Status::Access, ["\"mount\"", "uid 0"]),
    ];
    for (number, export, asked, status, parts) in cases {
        let error = access.permit(&key(number), export, asked).unwrap_err();
        assert_eq!(error.status, status, "{error}");
        assert!(parts.iter().all(|part| error.message.contains(part)), "{error}");
    }
    assert!(access.may_use(&key(1), "logs") && !access.may_use(&key(1), "other"));
    assert!(!access.may_use(&key(3), "data"));

    access.fence("web").unwrap();
    for export in ["data", "other"] {
        let error = access.permit(&key(1), export, None).unwrap_err();
        assert_eq!(error.status, Status::Fenced);
        assert!(error.message.contains("dafsd unfence web"), "{error}");
    }
    access.permit(&key(2), "data", Some(&asked)).unwrap();
    assert!(access.unfence("web").unwrap() && !access.unfence("web").unwrap());
    access.permit(&key(1), "data", None).unwrap();
}

#[test]
fn files_are_read_again_and_fences_outlive_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let (authorized, fenced) = (directory.path().join("clients"), directory.path().join("fenced"));
    let write = |text: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&authorized, text).unwrap();
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&authorized, mode).unwrap();
    };
    write(&clients());
    let load = || Access::load(&authorized, &fenced, true);
    let access = load().unwrap();
    let exports = ["data", "logs"];
    let reload = |forced| access.reload(forced, exports.into_iter());
    assert!(reload(false).is_none());
    assert_eq!(reload(true).unwrap().unwrap(), []);

    write("nonsense\n");
    let error = reload(false).unwrap().unwrap_err().to_string();
    assert!(error.contains("nonsense"), "{error}");
    access.permit(&key(1), "data", None).unwrap();
    assert!(
        load().unwrap_err().to_string().contains("nonsense"),
        "a server does not begin with it"
    );

    write(&clients().replace("data,", ""));
    let revoked = reload(false).unwrap().unwrap();
    assert_eq!(revoked[0].to_string(), "web (data)");
    assert_eq!(access.permit(&key(1), "data", None).unwrap_err().status, Status::NoExport);

    access.fence("web").unwrap();
    access.fence("web").unwrap();
    let again = load().unwrap();
    assert_eq!(again.fenced(), ["web"]);
    assert_eq!(again.permit(&key(1), "logs", None).unwrap_err().status, Status::Fenced);

    // What cannot be remembered is not done.
    std::fs::create_dir(fenced.with_extension("new")).unwrap();
    access.fence("mount").unwrap_err();
    access.unfence("web").unwrap_err();
    assert_eq!(access.fenced(), ["web"]);
    std::fs::write(&fenced, "nonsense").unwrap();
    assert!(load().unwrap_err().to_string().contains("damaged"));
}
