//! Tests of the durable log over real files and real redb.

mod care;
mod carry;
mod common;
mod crash_images;
mod damage;
mod direct;
mod faults;
mod fence;
mod fixture;
mod folder;
mod fuzz;
mod model;
mod recovery;
mod relocate;
mod snapshot;
