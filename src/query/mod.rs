//! SQL over a lake: a session with every table under each of its names, and results in a form to read or to pass on.
//! DataFusion stays behind this door. No statement can write, or read anything but the lake's tables.

pub mod bloom;
pub mod limits;
mod dialect;
mod files;
mod functions;
mod gathering;
mod growth;
mod lookup;
mod names;
mod overview;
mod unfold;
mod rewrite;
mod saved;
mod scan;
mod session;
mod statements;
mod table;
mod tables;
mod render;

pub use dialect::MACROS;
pub use names::Vocabulary;
pub use overview::{TABLES, drift};
pub use render::{Cells, Format, Renderer};
pub use saved::{Kind, Parameter, SavedError, SavedQuery, Value, built_in};
pub use session::{QueryError, Session};
pub use statements::{completions, is_complete, split};
pub use table::Expanded;
