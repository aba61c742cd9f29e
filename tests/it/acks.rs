//! The ack book: a message is complete when everything it announces has landed, and not before.

use std::time::{Duration, Instant};

use flarelake::decode::object::ObjectId;
use flarelake::ingest::book::{Book, Lease, MessageKey};

fn key(id: &str) -> MessageKey {
    MessageKey { queue: 0, id: id.into() }
}

/// Enters a message that announces `what`: the numbers of what is new.
fn enter(book: &mut Book<&'static str>, id: &str, what: &[&'static str]) -> Vec<u64> {
    let lease = Lease::new(Instant::now(), Duration::from_secs(30));
    assert!(book.hold(key(id), format!("receipt of {id}"), 0, 100, lease));
    let new = what.iter().filter_map(|w| book.wait_for(&key(id), w)).collect();
    assert!(!book.seal(&key(id)), "{id} waits for something");
    new
}

#[test]
fn a_message_is_complete_with_the_last_of_its_objects() {
    let mut book = Book::default();
    let numbers = enter(&mut book, "m", &["a", "b"]);
    assert_eq!(numbers.len(), 2);
    // A later message for one of them is attached to it.
    assert_eq!(enter(&mut book, "n", &["b"]), [0u64; 0]);
    assert!(book.landed(numbers[0]).is_empty());
    let mut done = book.landed(numbers[1]);
    done.sort();
    assert_eq!(done, [key("m"), key("n")]);
    assert!(book.any_complete());
    assert_eq!((book.forget(&key("m")).as_deref(), book.weight()), (Some("receipt of m"), 100));
    // Landed twice is landed once.
    assert!(book.landed(numbers[1]).is_empty());
}

#[test]
fn a_message_that_brings_nothing_is_complete_at_once() {
    let mut book: Book<&str> = Book::default();
    assert!(book.hold(key("m"), "r".into(), 0, 1, Lease::new(Instant::now(), Duration::from_secs(1))));
    assert!(book.seal(&key("m")));
}

#[test]
fn two_announcements_that_turn_out_to_be_one_object_land_together() {
    let mut book = Book::default();
    let first = enter(&mut book, "m", &["by one name"])[0];
    let second = enter(&mut book, "n", &["by another"])[0];
    assert!(book.identify(first, ObjectId(7)));
    assert!(!book.identify(second, ObjectId(7)), "it is on its way already");
    assert_eq!(book.what(second), None);
    let mut done = book.landed(first);
    done.sort();
    assert_eq!(done, [key("m"), key("n")]);
}

#[test]
fn a_message_given_up_and_received_again_waits_for_everything_anew() {
    let mut book = Book::default();
    let numbers = enter(&mut book, "m", &["a", "b"]);
    assert_eq!(book.give_up(numbers[1]), [(key("m"), "receipt of m".to_owned())]);
    assert_eq!(book.len(), 0);
    // `a` is still on its way, for the first holding.
    let again = enter(&mut book, "m", &["a", "b"]);
    assert_eq!(again.len(), 1, "only b is set on its way again");
    assert!(book.landed(numbers[0]).is_empty(), "b has not landed");
    assert_eq!(book.landed(again[0]), [key("m")]);
}

#[test]
fn leases_are_due_before_half_has_passed_and_lost_when_they_end() {
    let mut book: Book<&str> = Book::default();
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let lease = |from: u64| Lease::new(at(from), Duration::from_secs(30));
    assert!(book.hold(key("m"), "first".into(), 0, 1, lease(0)));
    assert!(book.due(0, at(11)).is_empty());
    assert_eq!(book.due(0, at(14)).len(), 1);
    assert!(book.due(1, at(14)).is_empty(), "another queue's");
    book.extended(&key("m"), "first", lease(14));
    assert!(book.due(0, at(25)).is_empty());
    // Past its end it is tried all the same: only the queue knows whether someone else has the message by
    // now.
    assert_eq!(book.due(0, at(45)).len(), 1);
    assert!(book.hold(key("n"), "later".into(), 0, 1, lease(20)));
    let due: Vec<_> = book.due(0, at(45)).into_iter().map(|(key, _)| key.id).collect();
    assert_eq!(due, ["m", "n"], "the one that ends first, first");
    assert!(book.forget(&key("n")).is_some());
    assert!(book.lost(&key("m"), "first"));
    assert!(!book.lost(&key("m"), "first"), "counted once");
    assert!(book.due(0, at(46)).is_empty(), "what is lost is not extended");
    // Received again: the new receipt is the good one, and an answer about the old one says nothing.
    assert!(!book.hold(key("m"), "second".into(), 0, 1, lease(50)));
    assert!(!book.lost(&key("m"), "first"));
    assert_eq!(book.due(0, at(64)), [(key("m"), "second".to_owned())]);
    assert!(book.lost(&key("m"), "second"));
    assert_eq!(book.len(), 1, "its objects land all the same");
}
