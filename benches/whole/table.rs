//! Figures: what was measured round by round, beside its limit, and whether it is what it shall be.

use std::fmt::Write;

use serde::Serialize;

/// What a figure shall be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// At least this share of the limit of the same round.
    Share(f64),
    /// At most so much.
    Most(f64),
    /// Nothing: it is only told.
    Told,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) part: &'static str,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// Of each round.
    pub(crate) ours: Vec<f64>,
    /// What the limit is.
    pub(crate) against: String,
    /// Of each round; empty where there is no limit to be measured.
    pub(crate) limit: Vec<f64>,
    pub(crate) bound: Bound,
}

/// Median, lowest and highest.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// # Panics
    /// Where there is nothing.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Self { median, low, high }
    }
}

impl Figure {
    /// Ours as a share of the limit, round by round.
    pub(crate) fn share(&self) -> Option<Spread> {
        let shares = self.ours.iter().zip(&self.limit).map(|(ours, limit)| ours / limit);
        (!self.limit.is_empty()).then(|| Spread::of(shares))
    }

    /// Whether it is what it shall be.
    pub(crate) fn holds(&self) -> bool {
        match (self.bound, self.share()) {
            (Bound::Share(least), Some(share)) => share.median >= least,
            (Bound::Most(most), _) => Spread::of(self.ours.iter().copied()).median <= most,
            _ => true,
        }
    }
}

/// With as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let split = digits.len() - 3;
            if split > 3 {
                format!("{},{},{}", &digits[..split - 3], &digits[split - 3..split], &digits[split..])
            } else {
                format!("{},{}", &digits[..split], &digits[split..])
            }
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The table as text, in Markdown's form.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut out = String::from(
        "| figure | unit | ours | limit | ratio | lowest to highest | shall be | |\n|---|---|---|---|---|---|---|---|\n",
    );
    for figure in figures {
        let ours = Spread::of(figure.ours.iter().copied());
        let share = figure.share();
        let limit = if figure.limit.is_empty() {
            String::new()
        } else {
            format!("{} ({})", number(Spread::of(figure.limit.iter().copied()).median), figure.against)
        };
        let (ratio, spread) = match share {
            Some(share) => (number(share.median), format!("{} to {}", number(share.low), number(share.high))),
            None => (String::new(), format!("{} to {}", number(ours.low), number(ours.high))),
        };
        let bound = match figure.bound {
            Bound::Share(least) => format!("ratio ≥ {least}"),
            Bound::Most(most) => format!("≤ {most}"),
            Bound::Told => String::new(),
        };
        let verdict = match (figure.bound, figure.holds()) {
            (Bound::Told, _) => "",
            (_, true) => "yes",
            (_, false) => "NO",
        };
        let ours = number(ours.median);
        writeln!(
            out,
            "| {}: {} | {} | {ours} | {limit} | {ratio} | {spread} | {bound} | {verdict} |",
            figure.part, figure.name, figure.unit
        )
        .unwrap();
    }
    out
}
