//! The percentile plot for the terminal: latency over percentile, both axes logarithmic, so that
//! the tail is as wide as the middle.

use std::fmt::Write;

use hdrhistogram::Histogram;

const WIDTH: usize = 72;
const HEIGHT: usize = 14;

/// Draws latencies in microseconds. Empty when there is none.
pub(crate) fn percentiles(latencies: &Histogram<u64>) -> String {
    if latencies.is_empty() {
        return String::new();
    }
    // As many nines as there are records to tell them apart, at least two.
    let nines = (latencies.len() as f64).log10().ceil().clamp(2.0, 6.0);
    let quantile = |column: usize| 1.0 - 10f64.powf(-nines * column as f64 / (WIDTH - 1) as f64);
    let values: Vec<f64> =
        (0..WIDTH).map(|column| latencies.value_at_quantile(quantile(column)).max(1) as f64).collect();
    let low = 10f64.powf(values[0].log10().floor());
    let high = 10f64.powf(values[WIDTH - 1].log10().ceil().max(low.log10() + 1.0));
    let row_of = |value: f64| {
        let height = (value / low).ln() / (high / low).ln();
        (height * (HEIGHT - 1) as f64).round().clamp(0.0, (HEIGHT - 1) as f64) as usize
    };
    let rows: Vec<usize> = values.iter().map(|&value| row_of(value)).collect();

    let mut plot = String::from("latency by percentile (both axes logarithmic)\n");
    for row in (0..HEIGHT).rev() {
        let value = low * (high / low).powf(row as f64 / (HEIGHT - 1) as f64);
        let is_labelled = row % 3 == 0 || row == HEIGHT - 1;
        let label = if is_labelled { duration(value) } else { String::new() };
        let _ = write!(plot, "{label:>9} |");
        let mut line = String::new();
        for column in 0..WIDTH {
            // A step up is drawn as a line, not as a hole.
            let before = if column == 0 { rows[0] } else { rows[column - 1] };
            let is_step = before < row && row < rows[column];
            line.push(if row == rows[column] {
                '*'
            } else if is_step {
                '|'
            } else {
                ' '
            });
        }
        let _ = writeln!(plot, "{}", line.trim_end());
    }
    let _ = writeln!(plot, "{:>9} +{}", "", "-".repeat(WIDTH));
    let mut axis = vec![' '; WIDTH + 16];
    for nine in 0..=nines as usize {
        let label = match nine {
            0 => "0%".to_owned(),
            1 => "90%".to_owned(),
            2 => "99%".to_owned(),
            more => format!("99.{}%", "9".repeat(more - 2)),
        };
        let column = (nine as f64 / nines * (WIDTH - 1) as f64).round() as usize;
        for (at, letter) in label.chars().enumerate() {
            axis[column + at] = letter;
        }
    }
    let axis: String = axis.into_iter().collect();
    let _ = writeln!(plot, "{:>9}  {}", "", axis.trim_end());
    plot
}

/// A number of microseconds with three digits and its best unit.
pub(crate) fn duration(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "us"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::latencies;

    #[test]
    fn the_plot_has_its_axes_and_one_mark_in_each_column() {
        let mut histogram = latencies();
        assert_eq!(percentiles(&histogram), "");
        for us in 1..=20_000_u64 {
            histogram.record(us * us / 1000 + 50).unwrap();
        }
        let plot = percentiles(&histogram);
        let lines: Vec<&str> = plot.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 3);
        assert_eq!(plot.matches('*').count(), WIDTH);
        assert!(lines[HEIGHT + 2].contains("99.9%"), "{plot}");
        assert!(lines[1].trim_start().starts_with("1.00 s"), "{plot}");
        assert!(lines[HEIGHT].trim_start().starts_with("10.0 us"), "{plot}");
    }

    #[test]
    fn one_record_is_a_plot_too() {
        let mut histogram = latencies();
        histogram.record(1).unwrap();
        assert_eq!(percentiles(&histogram).matches('*').count(), WIDTH);
    }

    #[test]
    fn durations_have_three_digits() {
        assert_eq!(duration(1.0), "1.00 us");
        assert_eq!(duration(999.0), "999 us");
        assert_eq!(duration(12_345.0), "12.3 ms");
        assert_eq!(duration(2_000_000.0), "2.00 s");
    }
}
