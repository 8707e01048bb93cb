//! Whether a shard's settings go together.

use std::time::Duration;

use crate::error::ConfigError;
use crate::ids::NodeId;
use crate::io::{LeaseReads, ShardConfig};
use crate::lease::Times;

/// Highest byte limit accepted: a batch stays far below the 4 GiB that its header can say.
pub(super) const LIMIT_BYTES_MAX: usize = 1 << 30;

/// Highest bound on the drift of clocks accepted, in parts per million.
const DRIFT_PPM_LIMIT: u32 = 500_000;

/// Highest count limit accepted.
const LIMIT_COUNT_MAX: usize = 1 << 24;

pub(super) fn config(config: &ShardConfig) -> Result<(), ConfigError> {
    if config.node == NodeId(0) {
        return Err(ConfigError::NodeZero);
    }
    let shard_count = config.placement.shard_count();
    if config.shard.0 >= shard_count {
        return Err(ConfigError::NoSuchShard { shard: config.shard, shard_count });
    }
    if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&config.tick) {
        return Err(ConfigError::Tick);
    }
    let (heartbeat_ticks, lease_ticks) = (config.heartbeat_ticks, config.lease_ticks);
    if heartbeat_ticks == 0 || heartbeat_ticks >= lease_ticks {
        return Err(ConfigError::HeartbeatTicks { heartbeat_ticks, lease_ticks });
    }
    let (shortest, longest) = config.election_ticks;
    if shortest <= lease_ticks || longest < shortest || longest > 1_000_000 {
        return Err(ConfigError::ElectionTicks { shortest, longest, lease_ticks });
    }
    if let Some(LeaseReads { drift_ppm_max }) = config.lease_reads {
        let is_short = || Times::of(config).is_some_and(|times| times.lease <= config.tick * heartbeat_ticks);
        if !(1..=DRIFT_PPM_LIMIT).contains(&drift_ppm_max) || is_short() {
            return Err(ConfigError::LeaseReads { drift_ppm_max, heartbeat_ticks, lease_ticks });
        }
    }
    let election = config.tick * longest;
    let times = [
        ("flush_stuck_after", config.flush_stuck_after, config.tick),
        ("retention_interval", config.retention_interval, config.tick),
        ("session_ttl_max", config.session_ttl_max, config.tick),
        ("spread.interval", config.spread.map_or(election, |spread| spread.interval), election),
        ("snapshots.stall_after", config.snapshots.stall_after, election.max(config.snapshots.pace())),
    ];
    if let Some((setting, value, value_min)) =
        times.into_iter().find(|(_, value, value_min)| value < value_min)
    {
        return Err(ConfigError::TooShort { setting, value, value_min });
    }
    if config.spread.is_some_and(|spread| spread.band == 0) {
        return Err(ConfigError::Band);
    }
    if config.quiet_after.is_some_and(|after| after < config.tick * heartbeat_ticks) {
        let (value, value_min) = (config.quiet_after.unwrap_or_default(), config.tick * heartbeat_ticks);
        return Err(ConfigError::TooShort { setting: "quiet_after", value, value_min });
    }
    let as_limit = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let limits = [
        ("entry_bytes_max", config.entry_bytes_max, LIMIT_BYTES_MAX),
        ("waking_max", config.waking_max, LIMIT_COUNT_MAX),
        ("entry_records_max", config.entry_records_max, LIMIT_COUNT_MAX),
        ("pending_bytes_max", config.pending_bytes_max, LIMIT_BYTES_MAX),
        ("shard_pending_bytes_max", config.shard_pending_bytes_max, usize::MAX / 2),
        ("message_bytes_max", config.message_bytes_max, LIMIT_BYTES_MAX),
        ("inflight_messages_max", config.inflight_messages_max, LIMIT_COUNT_MAX),
        ("window_bytes_max", config.window_bytes_max, usize::MAX / 2),
        ("apply_bytes_max", config.apply_bytes_max, LIMIT_BYTES_MAX),
        ("apply_lag_records_max", config.apply_lag_records_max, LIMIT_COUNT_MAX),
        ("reads_waiting_max", config.reads_waiting_max, LIMIT_COUNT_MAX),
        ("snapshots.taking_max", config.snapshots.taking_max, LIMIT_COUNT_MAX),
        ("snapshots.sending_max", config.snapshots.sending_max, LIMIT_COUNT_MAX),
        ("snapshots.receiving_max", config.snapshots.receiving_max, LIMIT_COUNT_MAX),
        ("snapshots.entries", as_limit(config.snapshots.entries), usize::MAX),
        ("snapshots.bytes", as_limit(config.snapshots.bytes), usize::MAX),
        ("snapshots.send_bytes_per_second", as_limit(config.snapshots.send_bytes_per_second), usize::MAX),
        ("tails_max", config.tails_max, LIMIT_COUNT_MAX),
        ("sessions_per_owner_max", config.sessions_per_owner_max as usize, LIMIT_COUNT_MAX),
    ];
    let is_out_of_range = |limit: &(&'static str, usize, usize)| limit.1 == 0 || limit.1 > limit.2;
    match limits.into_iter().find(is_out_of_range) {
        Some((setting, value, value_max)) => Err(ConfigError::Limit { setting, value, value_max }),
        None => Ok(()),
    }
}
