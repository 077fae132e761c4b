//! The handshake and encrypted messages: the suite of all engines once more, what only they
//! promise, and peers and bystanders that do not keep to them.

#[allow(dead_code)]
#[path = "../engines/harness.rs"]
mod harness;
#[path = "../engines/simulated.rs"]
mod simulated;
#[path = "../engines/suite.rs"]
mod suite;

mod between;
mod garbage;
mod guarded;
mod promises;
mod virtual_time;

use harness::Row;

macro_rules! rows {
    ($($row:ident: $make:expr;)*) => {
        $(mod $row {
            use super::*;

            fn row() -> Row {
                $make
            }

            rows!(@tests promises row
                messages_and_data_of_many_sizes
                offers_are_sealed
                withdrawn_memory_is_not_sent
                plain_links_stand_beside_secure_ones
                a_server_with_another_key_is_no_server
                refused_clients_are_told_why
                sends_of_many_threads_keep_their_order
                messages_beyond_the_limits_end_the_connection
                clients_come_back
            );
            mod same {
                use super::*;

                fn row() -> Row {
                    guarded::Guarded::new(super::row()).row()
                }

                rows!(@tests suite row
                    echo_of_many_sizes
                    many_clients_at_once
                    messages_keep_their_order
                    messages_beyond_the_limits_are_refused
                    placing_into_advertised_memory
                    placing_slots
                    a_slot_that_changes_is_placed_whole_or_judged
                    retiring_a_chunk_that_is_placed_from
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
            }
        })*
    };
    (@tests $from:ident $row:ident $($test:ident)*) => {
        $(#[test]
        fn $test() {
            $from::$test(&$row());
        })*
    };
}

/// Memory is fetched as it lies there, in spite of the handshake. Over verbs there is none to be had
/// but what was offered, which is sealed.
macro_rules! fetched_as_it_is {
    ($($row:ident: $make:expr;)*) => {
        $(mod $row {
            use super::super::*;

            fn row() -> Row {
                guarded::Guarded::new($make).row()
            }

            rows!(@tests suite row
                fetching_from_advertised_memory
                transfers_of_a_withdrawn_buffer
            );
        })*
    };
}

mod fetched {
    fetched_as_it_is! {
        tcp: Row::tcp().sealed();
        tcp_keyed: Row::tcp().keyed();
        shm: Row::shm().sealed();
        sim: simulated::row().sealed();
    }
}

#[cfg(feature = "device-tests")]
rows! {
    verbs: Row::verbs().sealed();
}

rows! {
    tcp: Row::tcp().sealed();
    tcp_keyed: Row::tcp().keyed();
    shm: Row::shm().sealed();
    sim: simulated::row().sealed();
}
