//! In which order warps and blocks run.

/// The order. A program that is right gives the same result in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// First to last, each as far as it gets.
    #[default]
    Forward,
    /// Last to first.
    Reverse,
    /// Drawn anew for every turn, with turns of a few instructions.
    Seeded(u64),
}

/// Instructions of a turn when nothing is drawn: only loops that wait for somebody else run longer.
const LONG_TURN: u64 = 1 << 16;
/// Longest drawn turn.
const SHORT_TURN: u64 = 200;

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// Turns of the warps of a block.
pub(super) struct Turns {
    order: Order,
    warps: usize,
    random: Random,
}

impl Turns {
    pub(super) fn new(order: Order, warps: usize, block: [u32; 3]) -> Self {
        let seed = if let Order::Seeded(seed) = order { seed } else { 0 };
        let block = block
            .iter()
            .fold(0u64, |all, index| all << 20 | u64::from(*index));
        Self {
            order,
            warps,
            random: Random(seed ^ block.wrapping_mul(0x2545_f491_4f6c_dd1d)),
        }
    }

    /// Each warp once, with the number of instructions it may run.
    pub(super) fn next(&mut self) -> Vec<(usize, u64)> {
        let all = 0..self.warps;
        match self.order {
            Order::Forward => all.map(|warp| (warp, LONG_TURN)).collect(),
            Order::Reverse => all.rev().map(|warp| (warp, LONG_TURN)).collect(),
            Order::Seeded(_) => {
                let mut turns: Vec<_> = all
                    .map(|warp| (warp, 1 + self.random.below(SHORT_TURN)))
                    .collect();
                for i in (1..turns.len()).rev() {
                    turns.swap(i, self.random.below(i as u64 + 1) as usize);
                }
                turns
            }
        }
    }
}

/// The `i`-th of `count` blocks to start.
pub(super) fn block_at(order: Order, i: u64, count: u64) -> u64 {
    match order {
        Order::Forward => i,
        Order::Reverse => count - 1 - i,
        // A stride that shares no divisor with the count visits every block once.
        Order::Seeded(seed) => {
            let mut stride = Random(seed).below(count) | 1;
            while gcd(stride, count) != 1 {
                stride += 2;
            }
            let start = Random(!seed).below(count);
            ((u128::from(i) * u128::from(stride) + u128::from(start)) % u128::from(count)) as u64
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_visits_every_block_and_warp_once() {
        for order in [Order::Forward, Order::Reverse, Order::Seeded(7), Order::Seeded(8)] {
            for count in [1, 2, 6, 35, 64] {
                let mut blocks: Vec<u64> = (0..count).map(|i| block_at(order, i, count)).collect();
                blocks.sort_unstable();
                assert!(blocks.iter().copied().eq(0..count), "{order:?} {count}");
            }
            let mut warps: Vec<_> = Turns::new(order, 9, [1, 2, 3])
                .next()
                .iter()
                .map(|turn| turn.0)
                .collect();
            warps.sort_unstable();
            assert!(warps.into_iter().eq(0..9));
        }
    }
}
