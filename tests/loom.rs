//! The atomics that are this crate's own, in all orders that threads can take them: loom runs each
//! model again and again, with another order and other values to be read each time.
//!
//! The files are those of the crate, with loom's atomics in the place of std's.
#![allow(dead_code, reason = "the crate uses what the models do not")]

#[path = "../src/store/budget.rs"]
mod budget;
#[path = "../src/run/bytes.rs"]
mod bytes;

use budget::Budget;
use bytes::BodyBytes;
use loom::{
    model,
    sync::{Arc, atomic},
    thread,
};

#[test]
fn of_two_that_reserve_where_there_is_room_for_one_one_has_it() {
    model(|| {
        let budget = Arc::new(Budget::new(10));
        let reserve = |bytes| {
            let budget = Arc::clone(&budget);
            move || budget.reserve(bytes)
        };
        let other = thread::spawn(reserve(6));
        let (mine, other) = (reserve(7)(), other.join().unwrap());
        assert!(mine != other);
        budget.give_back(if mine { 7 } else { 6 });
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn the_limit_holds_and_all_bytes_come_back() {
    model(|| {
        let budget = Arc::new(Budget::new(10));
        // A job ends with a small outcome, and expires, while another comes and goes.
        assert!(budget.reserve(8));
        let other = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || {
                let reserved = budget.reserve(6);
                assert!(budget.used() <= 10);
                if reserved {
                    budget.give_back(6);
                }
            })
        };
        budget.recount(8, 3);
        assert!(budget.used() <= 10);
        budget.give_back(3);
        other.join().unwrap();
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn room_that_is_given_back_is_found() {
    model(|| {
        let budget = Arc::new(Budget::new(10));
        assert!(budget.reserve(10));
        let other = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || budget.recount(10, 4))
        };
        let early = budget.reserve(6);
        other.join().unwrap();
        assert!(early || budget.reserve(6));
        assert_eq!(budget.used(), 10);
    });
}

/// Each upload may go over the limit by its last frame, and no further.
#[test]
fn buffered_bodies_go_over_by_a_frame_each_and_all_bytes_come_back() {
    model(|| {
        let bytes = Arc::new(BodyBytes::new(4));
        let upload = || {
            let bytes = Arc::clone(&bytes);
            move || {
                let frames = (0..2).take_while(|_| bytes.has_room()).map(|_| bytes.add(3)).count();
                (0..frames).for_each(|_| bytes.remove(3));
                frames
            }
        };
        let other = thread::spawn(upload());
        let frames = [upload()(), other.join().unwrap()];
        // Neither is shut out by the other for good, and one alone goes over once.
        assert!(frames.iter().sum::<usize>() >= 2, "{frames:?}");
        // Nothing is left: the next one finds all of the room.
        assert_eq!(upload()(), 2);
    });
}
