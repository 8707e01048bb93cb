//! Entry points for fuzzing: any bytes are decoded, and any damage to the files is opened, without a
//! panic that leaves this crate, and without other content than was written.

mod decode;
mod open;

pub use decode::decode;
pub use open::{Opened, open_damaged};
