//! Files that HdrHistogram's tools read: the interval log of version 1.3 with V2 histograms, and the percentile distribution (`.hgrm`).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError};

/// Microseconds in the millisecond that the column of maxima is in.
const MAX_VALUE_DIVISOR: f64 = 1000.0;
/// Steps from one halving of what is above a percentile to the next, as the other implementations have it.
const TICKS_PER_HALF: u32 = 5;

/// Latencies in microseconds of a stretch of time.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// Its beginning, from that of the load.
    pub(crate) from: Duration,
    pub(crate) length: Duration,
    pub(crate) latencies: Histogram<u64>,
}

/// Writes an interval log. `start`: when the load began.
pub(crate) fn write_log(path: &Path, start: SystemTime, stretches: &[Stretch]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment(
        "loadgen of iroh-raft: microseconds from when a record was sent, or due in the open loop",
    );
    builder.with_start_time(start).with_base_time(start).with_max_value_divisor(MAX_VALUE_DIVISOR);
    let mut log = builder.begin_log_with(&mut file, &mut serializer)?;
    for Stretch { from, length, latencies } in stretches {
        log.write_histogram(latencies, *from, *length, None).map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            other => io::Error::other(format!("{other:?}")),
        })?;
    }
    file.flush()
}

/// Writes the distribution over percentiles, in milliseconds.
pub(crate) fn write_percentiles(path: &Path, latencies: &Histogram<u64>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let ms = |us: f64| us / MAX_VALUE_DIVISOR;
    writeln!(file, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut count = 0;
    for at in latencies.iter_quantiles(TICKS_PER_HALF) {
        count += at.count_since_last_iteration();
        let (value, quantile) = (ms(at.value_iterated_to() as f64), at.quantile_iterated_to());
        if quantile < 1.0 {
            writeln!(file, "{value:>12.3} {quantile:>2.12} {count:>10} {:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(file, "{value:>12.3} {quantile:>2.12} {count:>10}")?;
        }
    }
    writeln!(
        file,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]",
        ms(latencies.mean()),
        ms(latencies.stdev())
    )?;
    writeln!(
        file,
        "#[Max     = {:>12.3}, Total count    = {:>12}]",
        ms(latencies.max() as f64),
        latencies.len()
    )?;
    writeln!(file, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", latencies.buckets(), 2048)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::recorder::latencies;

    #[test]
    fn a_log_has_every_interval_with_its_time_and_its_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latencies.hlog");
        let stretch = |second: u64, us: u64| {
            let mut histogram = latencies();
            histogram.record_n(us, 10 * second).unwrap();
            Stretch {
                from: Duration::from_secs(second),
                length: Duration::from_secs(1),
                latencies: histogram,
            }
        };
        write_log(&path, SystemTime::now(), &[stretch(1, 500), stretch(2, 70_000)]).unwrap();
        let text = std::fs::read(&path).unwrap();
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let bytes = base64_of(interval.encoded_histogram());
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
                found.push((interval.start_timestamp().as_secs(), histogram.len(), histogram.max()));
            }
        }
        assert_eq!(
            found.iter().map(|(second, count, _)| (*second, *count)).collect::<Vec<_>>(),
            [(1, 10), (2, 20)]
        );
        assert!(found[1].2.abs_diff(70_000) < 100);
    }

    /// Base 64, as RFC 4648 has it: what stands in the log.
    fn base64_of(text: &str) -> Vec<u8> {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bytes = Vec::new();
        let (mut held, mut bits) = (0_u32, 0);
        for letter in text.bytes().filter(|letter| *letter != b'=') {
            let six = LETTERS.iter().position(|known| *known == letter).unwrap() as u32;
            (held, bits) = (held << 6 | six, bits + 6);
            if bits >= 8 {
                bits -= 8;
                bytes.push((held >> bits) as u8);
                held &= (1 << bits) - 1;
            }
        }
        bytes
    }

    #[test]
    fn percentiles_rise_to_the_maximum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latencies.hgrm");
        let mut histogram = latencies();
        (1..=1000).for_each(|us| histogram.record(us).unwrap());
        write_percentiles(&path, &histogram).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Vec<f64>> = text
            .lines()
            .filter(|line| line.trim_start().starts_with(|letter: char| letter.is_ascii_digit()))
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert!(
            rows.len() > 20 && rows.is_sorted_by(|one, next| one[0] <= next[0] && one[1] <= next[1]),
            "{text}"
        );
        assert_eq!(rows.last().unwrap()[..], [1.0, 1.0, 1000.0]);
        assert!(text.contains("#[Max     =        1.000, Total count    =         1000]"), "{text}");
    }
}
