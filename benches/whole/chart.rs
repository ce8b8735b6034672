//! Charts of what was measured, as SVG: shares of the limits as bars, growth as lines on logarithmic axes.

use std::fmt::Write;

use crate::{
    growth::{Curve, Point},
    table::{Figure, number},
};

const WIDTH: f64 = 860.0;
const INK: &str = "#24292f";
const OURS: &str = "#0969da";
const WANTED: &str = "#cf222e";

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"{INK}\">{text}</text>").unwrap();
}

fn svg(height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// Each figure that has a limit, as a share of it; a line where it shall be at least.
pub(crate) fn shares(figures: &[Figure]) -> String {
    let (left, row, scale) = (330.0, 22.0, 300.0);
    let mut out = String::new();
    let shares = figures.iter().filter_map(|figure| Some((figure, figure.share()?)));
    let shares: Vec<_> = shares.filter(|(figure, _)| matches!(figure.bound, crate::table::Bound::Share(_))).collect();
    text(&mut out, (left, 18.0), "start", "share of the limit, median of the rounds; thin: lowest to highest");
    for (at, (figure, share)) in shares.iter().enumerate() {
        let y = 30.0 + row * at as f64;
        let x = |value: f64| left + scale * value.min(1.6);
        text(&mut out, (left - 8.0, y + 14.0), "end", &format!("{}: {}", figure.part, figure.name));
        writeln!(
            out,
            "<rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"{OURS}\"/>",
            y + 3.0,
            x(share.median) - left
        )
        .unwrap();
        writeln!(
            out,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"{INK}\"/>",
            x(share.low),
            x(share.high),
            y + 10.0
        )
        .unwrap();
        if let crate::table::Bound::Share(least) = figure.bound {
            writeln!(
                out,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"{WANTED}\" stroke-width=\"2\"/>",
                x(least),
                y + 1.0,
                y + 19.0
            )
            .unwrap();
        }
        text(&mut out, (x(share.high.max(share.median)) + 6.0, y + 14.0), "start", &number(share.median));
    }
    svg(40.0 + row * shares.len() as f64, &out)
}

/// A size in as few letters as go beside each other.
fn size(value: f64) -> String {
    if value >= 1000.0 { format!("{:.0}k", value / 1000.0) } else { format!("{value:.0}") }
}

/// Time by size, one panel a curve, both axes logarithmic; a thin line is linear growth from the last size.
pub(crate) fn growth(curves: &[Curve]) -> String {
    let (panel, height, pad) = (WIDTH / 2.0, 240.0, 50.0);
    let mut out = String::new();
    for (at, curve) in curves.iter().enumerate() {
        let (left, top) = (panel * (at % 2) as f64, height * (at / 2) as f64);
        let (first, last) = (curve.points[0], curve.points[curve.points.len() - 1]);
        let (low, high) = curve
            .points
            .iter()
            .fold((f64::MAX, 0.01_f64), |(low, high), point| (low.min(point.ms), high.max(point.ms)));
        let low = low.max(0.01);
        let place = |point: &Point| {
            let across = (point.size / first.size).ln() / (last.size / first.size).ln();
            let up = (point.ms.max(low) / low).ln() / (high / low).ln().max(0.01);
            (left + pad + across * (panel - 2.0 * pad), top + height - pad - up * (height - 2.0 * pad))
        };
        text(&mut out, (left + pad, top + 24.0), "start", &format!("{}: CPU ms by {}", curve.name, curve.of));
        let line: Vec<String> = curve.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{OURS}\" stroke-width=\"2\"/>", line.join(" "))
            .unwrap();
        for point in &curve.points {
            let (x, y) = place(point);
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{OURS}\"/>").unwrap();
            text(&mut out, (x, y - 8.0), "middle", &number(point.ms));
            text(&mut out, (x, top + height - pad + 18.0), "middle", &size(point.size));
        }
    }
    svg(height * curves.len().div_ceil(2) as f64, &out)
}
