//! A logarithmic axis: where a value is on it, and which values are written beside it.

/// Steps within a decade where an axis may begin, end, and have a line.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
/// Values a little beyond a step by rounding are still on it.
const SLACK: f64 = 1e-9;

/// Maps values to places on the paper, equal ratios to equal distances.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct LogScale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

/// A line across the paper.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    /// Whether it is a power of ten, and has its value written beside it.
    pub(crate) is_decade: bool,
}

impl LogScale {
    /// A scale on which all values have room, from place `from` to place `to`, which may be the lower one. Its ends
    /// are 1, 2 or 5 times a power of ten. What is not above zero has no place on it.
    pub(crate) fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> LogScale {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        let (low, mut high) = (step_below(low), step_above(high));
        if high <= low {
            high = low * 10.0;
        }
        LogScale { low, high, from, to }
    }

    /// Where a value is. What is beyond an end is beyond it on the paper as well.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }

    /// The lines across, from the lowest value to the highest.
    pub(crate) fn ticks(&self) -> Vec<Tick> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = decades.flat_map(|decade| STEPS.map(|step| (decade, step)));
        let ticks =
            all.map(|(decade, step)| Tick { value: step * 10f64.powi(decade), is_decade: step == 1.0 });
        let (low, high) = (self.low * (1.0 - SLACK), self.high * (1.0 + SLACK));
        ticks.filter(|tick| (low..=high).contains(&tick.value)).collect()
    }
}

fn step_below(value: f64) -> f64 {
    let decade = 10f64.powi(value.log10().floor() as i32);
    let fits = |step: &f64| step * decade <= value * (1.0 + SLACK);
    STEPS.iter().copied().rev().find(fits).unwrap_or(1.0) * decade
}

fn step_above(value: f64) -> f64 {
    let decade = 10f64.powi(value.log10().floor() as i32);
    let fits = |step: &f64| step * decade >= value * (1.0 - SLACK);
    STEPS.iter().copied().chain([10.0]).find(fits).unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(scale: &LogScale, is_decade: bool) -> Vec<f64> {
        let ticks = scale.ticks().into_iter().filter(|tick| tick.is_decade == is_decade);
        ticks.map(|tick| tick.value.round()).collect()
    }

    #[test]
    fn equal_ratios_are_equal_distances_in_either_direction() {
        for (from, to) in [(80.0, 880.0), (500.0, 20.0)] {
            let scale = LogScale::over([100.0, 10_000.0].into_iter(), from, to);
            assert!((scale.at(100.0) - from).abs() < 1e-6);
            assert!((scale.at(10_000.0) - to).abs() < 1e-6);
            assert!((scale.at(1_000.0) - f64::midpoint(from, to)).abs() < 1e-6);
            let (first, second) = (scale.at(400.0) - scale.at(200.0), scale.at(8_000.0) - scale.at(4_000.0));
            assert!((first - second).abs() < 1e-6);
        }
    }

    #[test]
    fn ends_are_the_next_steps_around_all_values() {
        let scale = LogScale::over([230.0, 1_619.0, 61_000.0].into_iter(), 0.0, 1.0);
        assert_eq!((scale.low.round(), scale.high.round()), (200.0, 100_000.0));
        assert_eq!(values(&scale, true), [1e3, 1e4, 1e5]);
        assert_eq!(values(&scale, false), [200.0, 500.0, 2e3, 5e3, 2e4, 5e4]);
        // Values that are steps stay where they are.
        let scale = LogScale::over([1_000.0, 5_000.0].into_iter(), 0.0, 1.0);
        assert_eq!((scale.low.round(), scale.high.round()), (1_000.0, 5_000.0));
    }

    #[test]
    fn nothing_a_single_value_and_values_without_a_place_still_make_a_scale() {
        for found in [vec![], vec![0.0, -3.0, f64::NAN], vec![7.0], vec![1.0]] {
            let scale = LogScale::over(found.iter().copied(), 10.0, 20.0);
            assert!(scale.low < scale.high && scale.at(scale.low).is_finite(), "{found:?}");
            assert!(!scale.ticks().is_empty(), "{found:?}");
        }
    }
}
