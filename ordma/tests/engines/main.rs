//! One suite over every engine, through the traits alone, and tests of what is particular to each.

#[cfg(feature = "device-tests")]
mod crowd_verbs;
mod harness;
mod host_local;
mod hostile;
mod keyed;
#[cfg(feature = "device-tests")]
mod placed;
#[cfg(feature = "device-tests")]
mod rogue_verbs;
mod sealed;
mod simulated;
mod suite;
#[cfg(feature = "device-tests")]
mod trouble_verbs;

use harness::Row;

macro_rules! rows {
    ($($row:ident: $make:expr;)*) => {
        $(mod $row {
            use super::*;

            fn row() -> Row {
                $make
            }

            rows!(@tests
                echo_of_many_sizes
                many_clients_at_once
                messages_keep_their_order
                messages_beyond_the_limits_are_refused
                placing_into_advertised_memory
                placing_slots
                a_slot_that_changes_is_placed_whole_or_judged
                retiring_a_chunk_that_is_placed_from
                fetching_from_advertised_memory
                transfers_of_a_withdrawn_buffer
                transfers_end_with_the_link
                pages_are_read
                reads_fault
                reads_are_refused_until_allowed
                batches_with_faults_in_the_middle
                version_floors
                places_of_another_size
                several_regions_of_one_batch
                a_changing_page_is_never_mixed
                several_threads_drive_one_endpoint
                a_stopped_server_is_unreachable
                a_closed_link_is_told_once_on_both_sides
                retiring_a_chunk
                an_interrupt_ends_a_wait
                no_server_no_connection
                one_thread_looks_after_several_endpoints
            );
        })*
    };
    (@tests $($test:ident)*) => {
        $(#[test]
        fn $test() {
            suite::$test(&row());
        })*
    };
}

rows! {
    tcp: Row::tcp();
    shm: Row::shm();
    sim: simulated::row();
    tcp_sealed: Row::tcp().sealed();
    shm_sealed: Row::shm().sealed();
    sim_sealed: simulated::row().sealed();
    tcp_keyed: Row::tcp().keyed();
}

#[cfg(feature = "device-tests")]
rows! {
    verbs: Row::verbs();
    verbs_sealed: Row::verbs().sealed();
}
