//! SQL over a lake: a session with every table under each of its names, and results in a form to read or to pass on.
//! DataFusion stays behind this door. No statement can write, or read anything but the lake's tables.

mod render;
mod session;

pub use render::{Format, Renderer};
pub use session::{QueryError, Session};
