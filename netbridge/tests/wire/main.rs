//! The frame codec from outside: round trips, hostile bytes, stored frames.

mod fixtures;
mod fuzz;
mod hostile;
mod round_trip;
mod samples;
