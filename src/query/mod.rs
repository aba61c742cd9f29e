//! SQL over a lake: a session with every table under each of its names, and results in a form to read or to pass on.
//! DataFusion stays behind this door. No statement can write, or read anything but the lake's tables.

mod counted;
mod dialect;
mod files;
mod names;
mod saved;
mod session;
mod statements;
mod table;
mod render;

pub use dialect::MACROS;
pub use names::Vocabulary;
pub use render::{Format, Renderer};
pub use saved::{Kind, Parameter, SavedError, SavedQuery, Value, built_in};
pub use session::{QueryError, Session};
pub use statements::{completions, is_complete, split};
pub use table::Expanded;
