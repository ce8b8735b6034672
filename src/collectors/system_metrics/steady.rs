//! Steady counters: sums over devices that do not fall because one device's counter began anew.
//!
//! The kernel's milliseconds of disks have 32 bits and wrap after 49 days of work. As psutil does it (`nowrap`), what
//! a counter had reached before it fell is added from then on, until its device goes away.
//!
//! Pure.

use std::collections::BTreeMap;

/// The counters of each device by its name.
pub(super) type Devices<const N: usize> = BTreeMap<String, [u64; N]>;

/// What was seen before.
#[derive(Debug, Default)]
pub(super) struct Steady<const N: usize> {
    devices: BTreeMap<String, Device<N>>,
}

#[derive(Debug)]
struct Device<const N: usize> {
    last: [u64; N],
    carried: [u64; N],
}

impl<const N: usize> Steady<N> {
    /// Sums the counters of all devices.
    pub(super) fn sum(&mut self, now: Devices<N>) -> [u64; N] {
        let mut sums = [0_u64; N];
        let mut devices = BTreeMap::new();
        for (name, counters) in now {
            let mut carried = [0; N];
            if let Some(before) = self.devices.get(&name) {
                let fields = carried.iter_mut().zip(&before.carried).zip(before.last.iter().zip(&counters));
                for ((carried, so_far), (last, now)) in fields {
                    *carried = if now < last { so_far.saturating_add(*last) } else { *so_far };
                }
            }
            for (sum, part) in sums.iter_mut().zip(counters.iter().zip(&carried)) {
                *sum = sum.saturating_add(*part.0).saturating_add(*part.1);
            }
            devices.insert(name, Device { last: counters, carried });
        }
        self.devices = devices;
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(looks: &[&[(&str, u64)]], want: &[u64]) {
        let mut steady = Steady::<1>::default();
        let devices = |look: &&[(&str, u64)]| look.iter().map(|(name, n)| ((*name).to_owned(), [*n])).collect();
        let got: Vec<u64> = looks.iter().map(|look| steady.sum(devices(look))[0]).collect();
        assert_eq!(got, want, "{looks:?}");
    }

    #[test]
    fn devices_are_summed() {
        check(&[&[("a", 1), ("b", 2)], &[("a", 3), ("b", 2)]], &[3, 5]);
    }

    #[test]
    fn a_counter_that_restarts_goes_on_from_where_it_was() {
        check(&[&[("a", 10)], &[("a", 3)], &[("a", 5)], &[("a", 1)]], &[10, 13, 15, 16]);
    }

    #[test]
    fn a_device_that_goes_away_takes_its_figures_with_it() {
        check(&[&[("a", 10), ("b", 1)], &[("a", 3), ("b", 1)], &[("b", 1)], &[("a", 2), ("b", 1)]], &[11, 14, 1, 3]);
    }
}
