//! Tests of the durable log over real files and real redb.

mod common;
mod crash_images;
mod damage;

mod folder;
mod model;
mod recovery;
