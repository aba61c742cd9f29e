//! What an item is known by, to the intake that took it in and where it is settled.

/// An item's number. An intake's items have different ones.
pub type ItemNo = u64;

/// Whether an item goes on, now that it is known which object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identified {
    /// It goes on.
    First,
    /// Another item is that object, and is on its way: this one is settled with it.
    OnItsWay,
}
