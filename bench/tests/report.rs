//! The form of results: what reads them relies on it.

use dafs_bench::machine::Machine;
use dafs_bench::report::{Report, Row};

fn report() -> Report {
    let floor = Row {
        path: "floor".into(),
        block: Some(4096),
        depth: Some(1),
        clients: Some(1),
        p50_us: Some(8.125),
        p99_us: Some(20.0),
        mean_us: Some(8.5),
        ops_per_s: Some(117_647.059),
        mb_per_s: Some(481.882),
        client_cpu_us_per_op: Some(4.0),
        ..Row::default()
    };
    let ordma = Row {
        path: "ordma".into(),
        p50_us: Some(9.75),
        handler_calls: Some(0),
        server_cpu_us_per_op: Some(3.5),
        ratio: Some(1.2),
        ..floor.clone()
    };
    Report {
        experiment: "response-time".into(),
        engine: Some("tcp".into()),
        protection: Some("none".into()),
        machine: Machine { cpu: "Example CPU".into(), cores: 2, kernel: "Linux 6.1".into() },
        commit: None,
        place: "cross".into(),
        keep_awake: true,
        date: "2025-01-31T23:59:59Z".into(),
        command: "dafs-bench response-time".into(),
        rows: vec![floor, ordma],
    }
}

#[test]
fn json_has_exactly_this_form() {
    assert_eq!(report().to_json() + "\n", include_str!("golden/report.json"));
}

#[test]
fn the_table_shows_what_applies_and_the_ratio() {
    assert_eq!(report().to_table("time"), include_str!("golden/report.txt"));
}

#[test]
fn the_fine_table_has_nanoseconds_and_no_rate_without_bytes() {
    let row = Row {
        path: "seal".into(),
        block: Some(4096),
        p50_us: Some(0.412),
        p99_us: Some(0.5),
        ..Row::default()
    };
    let setup = Row { path: "setup".into(), block: Some(0), ..row.clone() };
    let report = Report { engine: None, protection: None, rows: vec![row, setup], ..report() };
    let table = report.to_fine_table();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "response-time: place cross, keep-awake on");
    assert_eq!(
        lines[3..],
        ["seal    4096     412     500  9.94", "setup      0     412     500     -"]
    );
}
