//! The architecture's fence: which crate may depend on which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Every edge there may be between our crates. Development dependencies are not listed: tests may
/// look across.
const EDGES: &[(&str, &[&str])] = &[
    ("dafs-proto", &[]),
    ("dafs-keys", &[]),
    ("ordma", &["dafs-keys"]),
    ("dafsd", &["dafs-keys", "dafs-proto", "ordma"]),
    ("dafs-client", &["dafs-keys", "dafs-proto", "ordma"]),
    ("dafs-bench", &["dafs-client"]),
];

fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &serde_json::Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let ordinary = dependencies.filter(|d| d["kind"].as_str() != Some("dev"));
        ordinary.map(name).filter(|name| ours.contains(name)).collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn no_edge_but_those_of_the_design() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for (package, dependencies) in edges() {
        let allowed = allowed
            .get(package.as_str())
            .unwrap_or_else(|| panic!("{package} is new: give it its place in EDGES"));
        for dependency in dependencies {
            let ok = allowed.contains(&dependency.as_str());
            assert!(ok, "{package} -> {dependency} is an edge that the design does not have");
        }
    }
}

#[test]
fn unsafe_code_lives_in_ordma_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (krate, file) in [
        ("proto", "src/lib.rs"),
        ("keys", "src/lib.rs"),
        ("dafsd", "src/lib.rs"),
        ("dafs-client", "src/lib.rs"),
    ] {
        let text = std::fs::read_to_string(root.join(krate).join(file)).unwrap();
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{krate}/{file} does not forbid unsafe code"
        );
    }
}
