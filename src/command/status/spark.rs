//! The seconds of a history as numbers, and as the cells of a small chart.

use crate::admin::history::History;

/// The largest of each few seconds, oldest first: at most `width` cells for `values`, one a second, the
/// last of which is of the second `end`.
///
/// A cell holds the same seconds each time, whenever it is asked for, so a chart moves by whole cells and
/// does not flicker.
pub(super) fn cells(values: &[u64], end: i64, width: usize) -> Vec<u64> {
    let per = values.len().div_ceil(width.max(1)).max(1) as i64;
    let first = end - values.len() as i64;
    let mut cells: Vec<(i64, u64)> = Vec::new();
    for (second, &value) in (first + 1..).zip(values) {
        let cell = second.div_euclid(per);
        match cells.last_mut() {
            Some((of, most)) if *of == cell => *most = value.max(*most),
            _ => cells.push((cell, value)),
        }
    }
    let more = cells.len().saturating_sub(width);
    cells.into_iter().skip(more).map(|(_, most)| most).collect()
}

/// One line of bars, aligned right. The highest is as high as the line; nothing is drawn for 0.
pub(super) fn line(cells: &[u64], width: usize) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = u128::from(cells.iter().copied().max().unwrap_or(0).max(1));
    let bars = cells.iter().map(|&value| {
        let eighths = (u128::from(value) * 8).div_ceil(most);
        BARS[eighths as usize]
    });
    let bars: String = bars.collect();
    format!("{bars:>width$}")
}

/// The requests of each second, of all generations.
pub(super) fn requests(history: &History) -> Vec<u64> {
    let mut sums = vec![0; history.failures.len()];
    for generation in &history.generations {
        for (sum, &requests) in sums.iter_mut().zip(&generation.requests) {
            *sum += u64::from(requests);
        }
    }
    sums
}

/// Milliseconds as the API rounds them.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms >= 1000.0 {
        format!("{} s", ms / 1000.0)
    } else {
        format!("{ms} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_holds_the_largest_of_the_same_seconds_each_time() {
        assert_eq!(cells(&[1, 2, 3], 99, 3), [1, 2, 3]);
        assert_eq!(cells(&[1, 9, 3, 4, 5, 6], 5, 3), [9, 4, 6]);
        // A second later the values of a full chart have moved by one, the cells have not.
        assert_eq!(cells(&[9, 3, 4, 5, 6, 0], 6, 3), [4, 6, 0]);
        assert_eq!(cells(&[3, 4, 5, 6, 0, 8], 7, 3), [4, 6, 8]);
        for width in 0..4 {
            assert!(cells(&[7; 900], 1_700_000_000, width).len() <= width);
            assert!(cells(&[], 0, width).is_empty());
        }
    }

    #[test]
    fn bars_are_as_high_as_their_part_of_the_highest() {
        assert_eq!(line(&[0, 1, 4, 8], 6), "   ▁▄█");
        assert_eq!(line(&[u64::MAX, 1], 2), "█▁");
        assert_eq!(line(&[0, 0], 3), "   ");
        assert_eq!(line(&[], 2), "  ");
    }
}
