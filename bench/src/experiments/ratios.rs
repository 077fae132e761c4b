//! Rows held against their floors, and one-sided reads against direct ones.

use super::Experiment;
use crate::report::{Row, round};

/// What rows are held against each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Median times: the smaller the better, 1 is the floor.
    Time,
    /// Bytes a second: the larger the better, 1 is the floor.
    Rate,
}

impl Measure {
    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::Time => row.p50_us,
            Self::Rate => row.mb_per_s,
        }
    }
}

/// Notes beside each row how it compares with its floors: what moves the same bytes, as many of
/// them under way, by the same means. Reads from shared memory are a copy, everything else there
/// goes over a socket. Over verbs pages that come by themselves, one-sidedly or directly, are held
/// against READs, what comes in a message against messages. Sealed pages are also held against
/// their opening alone: a transfer that overlaps it is as fast as the slower of the two, that is,
/// the larger ratio of rates counts.
pub(crate) fn hold_against_floors(rows: &mut [Row], measure: Measure) {
    let floors: Vec<Row> = rows.iter().filter(|row| is_floor(row)).cloned().collect();
    for row in rows.iter_mut().filter(|row| !is_floor(row)) {
        let named = |name: &str| {
            floors.iter().find(|floor| {
                floor.path == name && floor.block == row.block && floor.depth == row.depth
            })
        };
        let names: &[&str] = match row.path.as_str() {
            "ordma" => &["floor"],
            "direct" => &["floor-socket", "floor"],
            _ => &["floor-socket", "floor-send", "floor"],
        };
        let floor = names.iter().find_map(|name| named(name));
        let spin = floor.and_then(|floor| named(&format!("{}-spin", floor.path)));
        let ratio = |floor: Option<&Row>| Some(round(measure.of(row)? / measure.of(floor?)?));
        let ratios = (ratio(floor), ratio(spin), ratio(named("floor-open")));
        (row.ratio, row.ratio_spin, row.ratio_open) = ratios;
    }
}

fn is_floor(row: &Row) -> bool {
    row.path.starts_with("floor")
}

/// Notes beside each row of one-sided reads how it compares with that of direct ones.
pub(super) fn hold_against_direct(rows: &mut [Row], measure: Measure) {
    let direct: Vec<Row> = rows.iter().filter(|row| row.path == "direct").cloned().collect();
    for row in rows.iter_mut().filter(|row| row.path == "ordma") {
        let of = |row: &Row| (row.block, row.depth, row.clients);
        let direct = direct.iter().find(|direct| of(direct) == of(row));
        let ratio = |direct: &Row| Some(round(measure.of(row)? / measure.of(direct)?));
        row.ratio_direct = direct.and_then(ratio);
    }
}

/// What one-sided reads of 4 KiB gain over direct ones, where there is a budget for that.
pub(super) fn against_direct(experiment: Experiment, rows: &[Row]) -> Option<String> {
    let (of, budget) = match experiment {
        Experiment::ResponseTime => {
            ("time", "at most 0.64, which is 92 us of 144 in the dissertation's table 7")
        }
        Experiment::ServerThroughput => ("rate", "at least 1.32"),
        _ => return None,
    };
    let found = rows.iter().filter(|row| row.path == "ordma" && row.block == Some(4096));
    let ratios: Vec<String> = found
        .filter_map(|row| {
            let ratio = row.ratio_direct?;
            let clients = row.clients.filter(|_| experiment == Experiment::ServerThroughput);
            let clients = match clients {
                None => String::new(),
                Some(1) => "1 client ".into(),
                Some(clients) => format!("{clients} clients "),
            };
            Some(format!("{clients}{ratio:.2} of the {of}"))
        })
        .collect();
    let ratios = (!ratios.is_empty()).then(|| ratios.join(", "))?;
    Some(format!("ordma / direct, 4096 bytes: {ratios} (budget: {budget})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str, p50: f64, rate: f64) -> Row {
        Row {
            path: path.into(),
            block: Some(4096),
            depth: Some(1),
            p50_us: Some(p50),
            mb_per_s: Some(rate),
            ..Row::default()
        }
    }

    fn ratios(rows: &[Row]) -> Vec<(Option<f64>, Option<f64>)> {
        rows.iter().map(|row| (row.ratio, row.ratio_spin)).collect()
    }

    #[test]
    fn over_tcp_rows_are_held_against_the_ping_pongs() {
        let mut rows =
            [row("floor", 10.0, 400.0), row("floor-spin", 5.0, 800.0), row("ordma", 12.0, 300.0)];
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[2], (Some(1.2), Some(2.4)));
        hold_against_floors(&mut rows, Measure::Rate);
        assert_eq!(ratios(&rows)[2].0, Some(0.75));
        assert_eq!(ratios(&rows)[0], (None, None));
    }

    #[test]
    fn in_shared_memory_one_sided_reads_are_held_against_the_copy() {
        let mut rows = [
            row("floor", 0.5, 8000.0),
            row("floor-socket", 10.0, 400.0),
            row("floor-socket-spin", 8.0, 500.0),
            row("inline", 20.0, 200.0),
            row("ordma", 1.0, 4000.0),
        ];
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[3..], [(Some(2.0), Some(2.5)), (Some(2.0), None)]);
    }

    #[test]
    fn over_verbs_what_moves_pages_is_held_against_reads_and_messages_against_messages() {
        let mut rows = [
            row("floor", 10.0, 400.0),
            row("floor-spin", 8.0, 500.0),
            row("floor-send", 20.0, 200.0),
            row("floor-send-spin", 16.0, 250.0),
            row("inline", 40.0, 100.0),
            row("direct", 20.0, 200.0),
            row("ordma", 12.0, 300.0),
            row("null-rpc", 30.0, 0.0),
            row("write", 30.0, 100.0),
        ];
        hold_against_floors(&mut rows, Measure::Time);
        let of_messages = (Some(2.0), Some(2.5));
        assert_eq!(
            ratios(&rows)[4..7],
            [of_messages, (Some(2.0), Some(2.5)), (Some(1.2), Some(1.5))]
        );
        assert_eq!(ratios(&rows)[7..], [(Some(1.5), Some(1.875)); 2]);
    }

    #[test]
    fn one_sided_reads_are_held_against_direct_ones() {
        let mut rows = [row("direct", 20.0, 200.0), row("ordma", 12.0, 300.0)];
        hold_against_direct(&mut rows, Measure::Time);
        assert_eq!((rows[0].ratio_direct, rows[1].ratio_direct), (None, Some(0.6)));
        let told = against_direct(Experiment::ResponseTime, &rows).unwrap();
        assert!(told.starts_with("ordma / direct, 4096 bytes: 0.60 of the time"), "{told}");
        assert!(told.contains("at most 0.64"), "{told}");
        for row in &mut rows {
            row.clients = Some(2);
        }
        hold_against_direct(&mut rows, Measure::Rate);
        let told = against_direct(Experiment::ServerThroughput, &rows).unwrap();
        assert!(told.contains("2 clients 1.50 of the rate"), "{told}");
        assert!(told.contains("at least 1.32"), "{told}");
        assert_eq!(against_direct(Experiment::Write, &rows), None);
    }

    #[test]
    fn rows_of_sealed_pages_are_also_held_against_opening_alone() {
        let mut rows = [
            row("floor", 10.0, 4000.0),
            row("floor-open", 20.0, 2000.0),
            row("ordma", 21.0, 1900.0),
        ];
        hold_against_floors(&mut rows, Measure::Rate);
        assert_eq!(rows[2].ratio_open, Some(0.95));
        assert_eq!(ratios(&rows)[2], (Some(0.475), None));
        assert_eq!(rows[1].ratio_open, None);
    }

    #[test]
    fn floors_of_other_sizes_do_not_count() {
        let mut rows = [row("floor", 10.0, 400.0), row("ordma", 12.0, 300.0)];
        rows[0].block = Some(8192);
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[1], (None, None));
    }
}
