//! The frame codec from outside: round trips, hostile bytes, stored frames.

mod fixtures;
mod hostile;
mod round_trip;
mod samples;
