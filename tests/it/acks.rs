//! The ack book: a message is complete when everything it announces has landed, and not before.

use std::time::Duration;

use flarelake::base::clock;
use flarelake::decode::object::ObjectId;
use flarelake::ingest::identity::Identified;
use flarelake::ingest::settle::book::{Book, Due, Lease, Load, MessageKey};

fn key(id: &str) -> MessageKey {
    MessageKey { queue: 0, id: id.into() }
}

/// Enters a message that announces `what`: the numbers of what is new.
fn enter(book: &mut Book<&'static str>, id: &str, what: &[&'static str]) -> Vec<u64> {
    let lease = Lease::new(clock::now(), Duration::from_secs(30));
    let holding = book.hold(key(id), format!("receipt of {id}"), 0, 100, lease).expect("it was not held");
    let new = what.iter().filter_map(|w| book.wait_for(&holding, w)).collect();
    assert!(!book.seal(&holding), "{id} waits for something");
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
    assert_eq!(
        (book.forget(&key("m")).as_deref(), book.load()[&0]),
        (Some("receipt of m"), Load { messages: 1, bytes: 100 })
    );
    // Landed twice is landed once.
    assert!(book.landed(numbers[1]).is_empty());
}

#[test]
fn a_message_that_brings_nothing_is_complete_at_once() {
    let mut book: Book<&str> = Book::default();
    let lease = Lease::new(clock::now(), Duration::from_secs(1));
    let holding = book.hold(key("m"), "r".into(), 0, 1, lease).expect("it was not held");
    assert!(book.seal(&holding));
}

#[test]
fn two_announcements_that_turn_out_to_be_one_object_land_together() {
    let mut book = Book::default();
    let first = enter(&mut book, "m", &["by one name"])[0];
    let second = enter(&mut book, "n", &["by another"])[0];
    assert_eq!(book.identify(first, ObjectId(7)), Identified::First);
    assert_eq!(book.identify(second, ObjectId(7)), Identified::OnItsWay);
    assert_eq!(book.identify(first, ObjectId(7)), Identified::First, "fetched once more");
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
fn a_message_given_up_while_it_is_entered_is_not_complete_without_what_comes_after() {
    let mut book = Book::default();
    let lease = || Lease::new(clock::now(), Duration::from_secs(30));
    let first = book.hold(key("m"), "first".into(), 0, 1, lease()).expect("it was not held");
    let a = book.wait_for(&first, "a").expect("new");
    assert_eq!(book.give_up(a).len(), 1, "a can't be read: the message goes back");
    // Another receiver enters the message again, while the first one still enters what it brings.
    let second = book.hold(key("m"), "second".into(), 0, 1, lease()).expect("it was not held");
    let a = book.wait_for(&second, "a").expect("new");
    assert_eq!(book.wait_for(&first, "b"), None, "nobody waits for it by the first holding");
    assert!(!book.seal(&first));
    assert!(book.landed(a).is_empty(), "b is still to be entered");
    let b = book.wait_for(&second, "b").expect("new");
    assert!(!book.seal(&second));
    assert_eq!(book.landed(b), [key("m")]);
}

#[test]
fn leases_are_due_before_half_has_passed_and_lost_when_they_end() {
    let mut book: Book<&str> = Book::default();
    let start = clock::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let lease = |from: u64| Lease::new(at(from), Duration::from_secs(30));
    let now = |receipt: &str| Due::Now(receipt.to_owned());
    assert_eq!(book.due(&key("m"), at(0)), Due::Never, "it is not held");
    assert!(book.hold(key("m"), "first".into(), 0, 1, lease(0)).is_some());
    assert_eq!(book.due(&key("m"), at(11)), Due::At(at(12)));
    assert_eq!(book.due(&key("m"), at(14)), now("first"));
    book.extended(&key("m"), "first", lease(14));
    assert_eq!(book.due(&key("m"), at(25)), Due::At(at(26)));
    // Past its end it is tried all the same: only the queue knows whether someone else has the message by
    // now.
    assert_eq!(book.due(&key("m"), at(45)), now("first"));
    assert!(book.lost(&key("m"), "first"));
    assert!(!book.lost(&key("m"), "first"), "counted once");
    assert_eq!(book.due(&key("m"), at(46)), Due::Never, "what is lost is not extended");
    // Received again: the new receipt is the good one, and an answer about the old one says nothing.
    assert!(book.hold(key("m"), "second".into(), 0, 1, lease(50)).is_none());
    assert!(!book.lost(&key("m"), "first"));
    assert_eq!(book.due(&key("m"), at(64)), now("second"));
    assert!(book.lost(&key("m"), "second"));
    assert_eq!(book.len(), 1, "its objects land all the same");
}
