//! Names of clusters.

use iroh_raft_core::ClusterId;

/// The id of the cluster with this name: FNV-1a, 128 bits.
#[must_use]
pub fn cluster_id(name: &str) -> ClusterId {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in name.as_bytes() {
        hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    ClusterId(hash.to_le_bytes())
}
