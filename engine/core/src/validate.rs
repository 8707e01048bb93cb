//! What is wrong with a peer's message.

/// Why a message was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// Placeholder until the validator lands.
    Malformed,
}
