//! A corpus cut into runs of documents that are scored at once.

use std::ops::Range;

use crate::spans::Spans;

/// Cuts documents into as few runs of so many documents and rows at most as there must be, and these into even shares of what they are cut by. A document of more
/// rows is a run.
pub(crate) fn cut(docs: &Spans, most_docs: usize, most_rows: usize) -> Vec<Range<usize>> {
    let (count, rows) = (docs.count(), docs.rows());
    // The first document from `from` on that ends beyond `row`: documents end in order.
    let beyond = |from: usize, row: usize| {
        let (mut low, mut high) = (from, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if docs.span(middle).end > row { high = middle } else { low = middle + 1 }
        }
        low
    };
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut first = 0;
    while first < count {
        let first_row = docs.span(first).start;
        let by_docs = (count - first).div_ceil(most_docs);
        let by_rows = (rows - first_row).div_ceil(most_rows);
        let share = if by_docs >= by_rows {
            first + (count - first).div_ceil(by_docs)
        } else {
            beyond(first, first_row + (rows - first_row).div_ceil(by_rows) - 1) + 1
        };
        let most = beyond(first, first_row + most_rows).min(first.saturating_add(most_docs));
        let end = share.min(most).clamp(first + 1, count);
        runs.push(first..end);
        first = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_hold_every_document_once() {
        for (lengths, most_docs, most_rows, ends) in [
            (vec![3, 3, 3, 3], 9, 6, [2, 4].as_slice()),
            // Even, not 3 and 1.
            (vec![3, 3, 3, 3], 3, 100, &[2, 4]),
            (vec![1; 10], 100, 9, &[5, 10]),
            (vec![3; 7], 100, 8, &[2, 4, 6, 7]),
            (vec![9, 1, 9], 9, 2, &[1, 2, 3]),
            // However many are empty, a run has no more.
            (vec![0, 0, 0, 1, 0, 0, 0], 2, 100, &[2, 4, 6, 7]),
            (vec![1, 0, 0, 0, 1], 1, 100, &[1, 2, 3, 4, 5]),
            (vec![4, 0, 0, 4], 100, 4, &[1, 4]),
        ] {
            let docs = Spans::of_lengths(lengths.clone());
            let found = cut(&docs, most_docs, most_rows);
            assert_eq!(found.iter().map(|run| run.end).collect::<Vec<_>>(), ends, "{lengths:?}");
            let starts: Vec<_> = [0].iter().chain(ends).take(ends.len()).copied().collect();
            assert_eq!(found.iter().map(|run| run.start).collect::<Vec<_>>(), starts, "{lengths:?}");
        }
    }

    #[test]
    fn runs_of_equal_documents_are_even() {
        for (count, length, most_docs, most_rows) in
            [(20_000_001, 1, 4000, 1 << 30), (100_003, 139, 1 << 24, 1_065_220), (7671, 139, 1 << 24, 1_065_220)]
        {
            let found = cut(&Spans::padded(count, length), most_docs, most_rows);
            let sizes = || found.iter().map(Range::len);
            assert!(sizes().sum::<usize>() == count && sizes().min() >= sizes().max().map(|most| most * 2 / 5));
            assert!(sizes().all(|docs| docs <= most_docs && docs * length <= most_rows));
        }
    }
}
