//! SQL over a lake: a session with every table under each of its names, and results in a form to read or to
//! pass on. DataFusion stays behind this door. No statement can write, or read anything but the lake's
//! tables.

mod files;
mod prune;
mod scan;
mod gc;
mod catalog;
mod overview;
mod saved;
mod frame;
mod render;
mod session;

pub use crate::sql::dialect::MACROS;
pub use crate::sql::names::Vocabulary;
pub use crate::sql::statements::{completions, is_complete, split};
pub use frame::Expanded;
pub use overview::{TABLES, drift};
pub use render::{Cells, Format, Renderer};
pub use saved::{Parameter, ParameterKind, SavedError, SavedQuery, Value, built_in};
pub use session::{QueryError, Session};
