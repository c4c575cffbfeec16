//! Who gets how many drafts in a step, if that pays.

use super::costs::{MOST_DRAFTS, MOST_ROWS, StepCosts};

/// Drafts must promise at least this much more speed, since their gain is an estimate.
const MARGIN: f32 = 1.05;
/// No row may lose more speed by the drafts of others: its client has nothing of theirs.
const FAIR: f32 = 0.97;

/// The numbers of drafts of rows with these chances that make the most tokens a second and no row slower, at most `room` in all. The step has `rows` rows,
/// with those that have no guess. A chance is that of a draft to be right if those before it in its row are.
pub(super) fn share(rows: usize, chances: &[Vec<f32>], room: usize, costs: &StepCosts) -> Vec<usize> {
    let none = vec![0; chances.len()];
    if rows == 0 || rows > MOST_ROWS {
        return none;
    }
    let mut counts = none.clone();
    // The chance that all of a row's drafts so far are right, and the next one too.
    let mut next: Vec<f32> = chances
        .iter()
        .map(|chances| chances.first().copied().unwrap_or(0.0))
        .collect();
    let mut tokens = rows as f32;
    // What each row gains. Rows without a guess gain nothing.
    let mut gains = vec![0.0_f32; chances.len()];
    let (mut best, mut most) = (none, tokens * MARGIN);
    for drafts in 1..=room.min(MOST_DRAFTS) {
        let likeliest = next.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let Some((row, chance)) = likeliest.map(|(row, chance)| (row, *chance)) else {
            break;
        };
        let (Some(count), Some(of_row), Some(next), Some(gain)) = (
            counts.get_mut(row),
            chances.get(row),
            next.get_mut(row),
            gains.get_mut(row),
        ) else {
            break;
        };
        if chance <= 0.0 {
            break;
        }
        *count += 1;
        tokens += chance;
        *gain += chance;
        *next = of_row.get(*count).map_or(0.0, |after| chance * after);
        let ratio = costs.ratio(rows, drafts);
        let least = match rows > chances.len() {
            true => 0.0,
            false => gains.iter().copied().fold(f32::INFINITY, f32::min),
        };
        let speed = tokens / ratio;
        if speed > most && (1.0 + least) / ratio >= FAIR {
            most = speed;
            best.clone_from(&counts);
        }
    }
    best
}

/// Every draft that there is room for.
pub(super) fn all(chances: &[Vec<f32>], mut room: usize) -> Vec<usize> {
    let mut take = |chances: &Vec<f32>| {
        let count = chances.len().min(room);
        room -= count;
        count
    };
    chances.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_drafts_pay_and_doubtful_ones_do_not() {
        let costs = StepCosts::default();
        let counts = |chance: f32| share(1, &[vec![chance; 8]], 100, &costs)[0];
        assert_eq!(counts(0.95), 8);
        assert_eq!(counts(0.2), 0);
        assert!((1..5).contains(&counts(0.6)), "{}", counts(0.6));
    }

    #[test]
    fn what_drafts_cost_decides() {
        let mut costs = StepCosts::default();
        for _ in 0..50 {
            costs.measured(1, 0, 0.010);
            costs.measured(1, 1, 0.020);
        }
        assert_eq!(share(1, &[vec![0.8; 8]], 100, &costs), [0]);
        for _ in 0..50 {
            costs.measured(1, 1, 0.010);
        }
        assert_eq!(share(1, &[vec![0.3; 8]], 100, &costs), [8], "they are free");
    }

    #[test]
    fn nobody_is_made_slower_by_the_drafts_of_others() {
        let mut costs = StepCosts::default();
        assert_eq!(share(2, &[vec![0.95; 8], vec![]], 100, &costs), [0, 0]);
        assert_eq!(
            share(16, &[vec![0.95; 8]], 100, &costs),
            [0],
            "fifteen have no guess"
        );
        for _ in 0..50 {
            costs.measured(2, 0, 0.010);
            costs.measured(2, 8, 0.0101);
        }
        let free = share(2, &[vec![0.95; 8], vec![]], 100, &costs);
        assert!(free[0] > 0, "what costs nothing is taken: {free:?}");
    }

    #[test]
    fn the_likeliest_go_first_and_room_is_kept() {
        let costs = StepCosts::default();
        let counts = share(3, &[vec![0.9; 4], vec![0.9; 4], vec![0.97; 4]], 5, &costs);
        assert_eq!(counts.iter().sum::<usize>(), 5);
        assert!(counts[2] > counts[0] && counts[1] > 0, "{counts:?}");
        assert_eq!(share(1, &[vec![0.99; 8]], 0, &costs), [0]);
        assert_eq!(
            share(MOST_ROWS + 1, &[vec![0.99; 8]], 9, &costs),
            [0],
            "rows are worth more there"
        );
        assert_eq!(share(0, &[], 9, &costs), [0; 0]);
    }
}
