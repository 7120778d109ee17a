//! The suite that every store passes (feature `conformance`).
//!
//! It checks each point of the contract that is written on [`Store`], and the author of a store
//! needs one test of it:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! use tower_offload::{MemoryStore, store::conformance};
//!
//! conformance::run(|| async { MemoryStore::new(32 << 20) }).await;
//! # }
//! ```
//!
//! Run it on a runtime with several threads (`#[tokio::test(flavor = "multi_thread")]`): tasks that
//! race are a good part of it. It takes a few seconds, in which jobs of 200 ms expire. A store that
//! takes its time from tokio alone may be run with a paused clock as well.
//!
//! The last checks are for stores that [keep requests](Store::keeps_requests).
//!
//! What is asked of the store beyond its contract: room for 2,000 jobs, and for an outcome of 1 MiB;
//! times to the millisecond; a change that wakes whoever waits within 20 ms, at best; and that what
//! has expired is gone within 2 s. With room for less than 64 MiB it is seen full, too.

mod changes;
mod check;
mod claims;
mod durable;
mod expiry;
mod kept;
mod progress;
mod races;
mod waiting;

use std::sync::Arc;

use check::Check;

use super::Store;

/// Runs every check in turn, each with a store that `fresh` makes for it: empty, and used by nobody
/// else.
///
/// # Panics
/// At the first check that fails, with the check's name and what was seen.
pub async fn run<S, F, Fut>(fresh: F)
where
    S: Store,
    F: Fn() -> Fut,
    Fut: Future<Output = S>,
{
    let fresh = || async {
        let store = Arc::new(fresh().await);
        (Arc::clone(&store), store)
    };
    checks(fresh).await;
}

/// The same for a store that several processes share: `fresh` makes two handles of one store, as two
/// processes would have them. Each check changes the store through the first, and looks and waits
/// through the second; tasks that race use both.
///
/// # Panics
/// As [`run`].
pub async fn run_shared<S, F, Fut>(fresh: F)
where
    S: Store,
    F: Fn() -> Fut,
    Fut: Future<Output = (S, S)>,
{
    let fresh = || async {
        let (here, there) = fresh().await;
        (Arc::new(here), Arc::new(there))
    };
    checks(fresh).await;
}

/// Not by `AsyncFn`: rustc could not tell then that the future may be sent to another thread.
async fn checks<S, F, Fut>(fresh: F)
where
    S: Store,
    F: Fn() -> Fut,
    Fut: Future<Output = (Arc<S>, Arc<S>)>,
{
    macro_rules! each {
        ($($part:ident: $($check:ident)*;)*) => {
            $($({
                let (here, there) = fresh().await;
                $part::$check(&Check::new(stringify!($check), here, there)).await;
            })*)*
        };
    }
    each! {
        kept:
            a_job_is_kept_as_given
            an_unknown_job_is_not_there
            an_id_that_is_known_is_refused
            a_job_is_found_by_its_owner_only
            a_job_that_is_taken_back_is_gone
            an_outcome_is_kept_byte_for_byte
            a_full_store_keeps_its_word
            any_future_may_be_dropped
            usage_is_told_by_policy;
        changes:
            the_table_of_transitions
            an_end_has_its_time_and_moves_expiry_later
            a_removal_takes_the_outcome_and_keeps_the_record;
        waiting:
            every_change_wakes
            a_change_made_before_the_call_is_not_missed
            there_is_no_waiting_for_what_is_not_there
            the_change_itself_wakes
            a_thousand_waiters_are_woken
            a_dropped_waiter_takes_no_wake_with_it
            a_follower_sees_the_last_change;
        progress:
            progress_is_kept_with_its_job
            progress_wakes_only_who_asked_for_it
            a_status_is_not_missed_for_progress;
        claims:
            a_claim_is_one_jobs
            a_claim_is_kept_to_the_end_and_after
            a_claim_ends_with_its_job
            a_job_that_ends_before_its_start_lets_go_of_its_claim
            a_job_that_another_request_was_given_is_not_taken_back
            a_claim_of_a_job_that_has_begun_is_not_taken_back
            what_is_refused_claims_nothing;
        races:
            racing_changes_are_applied_one_after_another
            of_racing_insertions_one_wins
            of_racing_claims_one_wins
            a_claim_that_is_let_go_of_in_a_race_is_one_jobs
            what_is_taken_back_in_a_race_stays_gone;
        expiry:
            what_has_not_ended_never_expires
            what_has_ended_is_kept_for_its_ttl_and_then_gone
            expiry_wakes
            what_has_expired_has_no_claim_and_is_not_counted;
        durable:
            a_durable_job_is_taken_with_its_request
            what_is_lost_is_taken_again_so_often
            a_claim_of_what_is_taken_again_is_not_taken_back
            what_was_canceled_or_taken_back_is_not_taken
            of_racing_takers_one_has_each_job
            an_arrival_is_seen_and_none_is_made_up
            a_take_that_is_dropped_loses_no_job
            what_waits_is_counted;
    }
}
