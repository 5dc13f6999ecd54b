//! Charts as SVG: groups of bars, and lines.

use std::fmt::Write as _;

use crate::run::results::Spread;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const PLOT_HEIGHT: f64 = 260.0;
const BOTTOM: f64 = 72.0;
const LEGEND_ROW: f64 = 20.0;

/// What each chart says beside its data.
#[derive(Clone, Debug)]
pub struct Labels {
    pub title: String,
    pub x: String,
    /// With its unit.
    pub y: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    FromZero,
    Logarithmic,
}

/// A line, or the bars of one colour: a value for each place on the x axis.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, Spread)>,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Style {
    Measured,
    /// Dashed and without points, in the colour of the series before.
    Computed,
}

/// Bars side by side: `groups` are the labels of the places 0, 1, 2 and so on.
pub fn bars(labels: &Labels, y: Scale, groups: &[String], series: &[Series]) -> String {
    let mut chart = Chart::new(labels, series);
    let scale = Axis::of(series.iter().flat_map(|it| &it.points).map(|it| it.1), y);
    chart.y_axis(&scale);
    let room = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
    for (index, group) in groups.iter().enumerate() {
        let place = index as f64;
        for (row, line) in group.lines().enumerate() {
            let y = TOP + PLOT_HEIGHT + 18.0 + 16.0 * row as f64;
            chart.text(LEFT + room * (place + 0.5), y, "middle", line);
        }
        let at = |series: &Series| series.points.iter().find(|it| it.0 == place).map(|it| it.1);
        let bars = series.iter().enumerate();
        let bars = bars.filter_map(|(number, it)| Some((at(it)?, colour(&it.name, number))));
        let bars: Vec<(Spread, &str)> = bars.collect();
        let width = room * 0.9 / bars.len().max(1) as f64;
        for (number, (spread, colour)) in bars.into_iter().enumerate() {
            let x = LEFT + room * (place + 0.05) + width * number as f64;
            chart.bar(x, width, &scale, spread, colour);
        }
    }
    chart.end()
}

/// Lines over a logarithmic x axis, with a tick at each of the values that were measured.
pub fn lines(labels: &Labels, y: Scale, series: &[Series]) -> String {
    let mut chart = Chart::new(labels, series);
    let scale = Axis::of(series.iter().flat_map(|it| &it.points).map(|it| it.1), y);
    chart.y_axis(&scale);
    let mut ticks: Vec<f64> = series.iter().flat_map(|it| &it.points).map(|it| it.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let (first, last) =
        (ticks.first().copied().unwrap_or(1.0), ticks.last().copied().unwrap_or(2.0));
    let room = WIDTH - LEFT - RIGHT - 40.0;
    let x_of = |x: f64| LEFT + 20.0 + room * (x / first).ln() / (last / first).ln().max(1e-9);
    for tick in &ticks {
        chart.text(x_of(*tick), TOP + PLOT_HEIGHT + 18.0, "middle", &number(*tick));
    }
    for (number, series) in series.iter().enumerate() {
        let points: Vec<_> = series.points.iter().map(|(x, spread)| (x_of(*x), *spread)).collect();
        let colour = colour(&series.name, number);
        chart.line(&points, &scale, series.style, colour);
    }
    chart.end()
}

/// The same colour for the same contender everywhere; they can be told apart without red and green.
fn colour(series: &str, number: usize) -> &'static str {
    const OTHERS: [&str; 6] = ["#0072b2", "#0072b2", "#e69f00", "#e69f00", "#009e73", "#009e73"];
    match series {
        "rabbit-work" | "worker" | "producer" => "#d55e00",
        "raw" | "xargs" => "#8c8c8c",
        "raw-multiple-50" | "raw-same-bytes" | "xargs-in-C" => "#bfbfbf",
        "amiquip" => "#9ecae9",
        "amiquip-nodelay" => "#0072b2",
        "lapin" => "#009e73",
        "amqprs" => "#cc79a7",
        "pika" => "#f0e442",
        "amqp-publish" | "amqp-consume" | "amqp-publish-unconfirmed" => "#000000",
        _ => OTHERS[number % OTHERS.len()],
    }
}

/// The y axis: from a least to a most value.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
}

impl Axis {
    fn of(spreads: impl Iterator<Item = Spread>, scale: Scale) -> Axis {
        let spreads: Vec<Spread> = spreads.collect();
        // The thin lines reach from the least to the most.
        let most = spreads.iter().map(|it| it.most).fold(f64::MIN_POSITIVE, f64::max);
        let least = spreads.iter().map(|it| it.least).filter(|it| *it > 0.0).fold(most, f64::min);
        match scale {
            Scale::FromZero => Axis { scale, least: 0.0, most: most * 1.08 },
            Scale::Logarithmic => {
                let power = |value: f64| 10f64.powf(value);
                Axis {
                    scale,
                    least: power(least.log10().floor()),
                    most: power(most.log10().ceil()),
                }
            }
        }
    }

    fn y_of(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::FromZero => value / self.most,
            Scale::Logarithmic => {
                (value.max(self.least) / self.least).ln() / (self.most / self.least).ln()
            }
        };
        TOP + PLOT_HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    }

    /// Round numbers, four to ten of them.
    fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Logarithmic {
            let powers = self.least.log10().round() as i32..=self.most.log10().round() as i32;
            return powers.map(|it| 10f64.powi(it)).collect();
        }
        let rough = self.most / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let round =
            [1.0, 2.0, 5.0, 10.0].into_iter().find(|it| it * power >= rough).unwrap_or(10.0);
        let step = round * power;
        (0..).map(|it| f64::from(it) * step).take_while(|it| *it <= self.most).collect()
    }
}

struct Chart {
    svg: String,
}

impl Chart {
    fn new(labels: &Labels, series: &[Series]) -> Chart {
        let rows = place_legend(series).last().map_or(0, |it| it.1 + 1);
        let height = TOP + PLOT_HEIGHT + BOTTOM + LEGEND_ROW * rows as f64;
        let mut chart = Chart { svg: String::new() };
        let font = "font-family=\"sans-serif\" font-size=\"13\"";
        _ = writeln!(
            chart.svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" {font} role=\"img\">\n\
             <title>{}</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>",
            escaped(&labels.title)
        );
        _ = writeln!(
            chart.svg,
            "<text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{}</text>",
            escaped(&labels.title)
        );
        chart.text(
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            TOP + PLOT_HEIGHT + 54.0,
            "middle",
            &labels.x,
        );
        let middle = TOP + PLOT_HEIGHT / 2.0;
        _ = writeln!(
            chart.svg,
            "<text transform=\"translate(16 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(&labels.y)
        );
        chart.legend(series);
        chart
    }

    fn legend(&mut self, series: &[Series]) {
        let top = TOP + PLOT_HEIGHT + BOTTOM;
        for (index, (x, row)) in place_legend(series).into_iter().enumerate() {
            let (series, y) = (&series[index], top + LEGEND_ROW * row as f64);
            let colour = colour(&series.name, index);
            let dash =
                if series.style == Style::Computed { " stroke-dasharray=\"5 4\"" } else { "" };
            _ = writeln!(
                self.svg,
                "<path d=\"M{x} {y}h22\" stroke=\"{colour}\" stroke-width=\"{}\"{dash}/>",
                if series.style == Style::Computed { 2 } else { 10 }
            );
            self.text(x + 28.0, y + 4.0, "start", &series.name);
        }
    }

    fn y_axis(&mut self, axis: &Axis) {
        for tick in axis.ticks() {
            let y = axis.y_of(tick);
            _ = writeln!(
                self.svg,
                "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#dddddd\"/>",
                WIDTH - RIGHT
            );
            self.text(LEFT - 8.0, y + 4.0, "end", &number(tick));
        }
    }

    /// A bar up to the median, its number above it, and a line over the spread.
    fn bar(&mut self, x: f64, width: f64, axis: &Axis, spread: Spread, colour: &str) {
        let (y, bottom) = (axis.y_of(spread.median), TOP + PLOT_HEIGHT);
        _ = writeln!(
            self.svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            width * 0.92,
            bottom - y
        );
        let middle = x + width * 0.46;
        self.spread(middle, axis, spread, "#333333");
        let above = axis.y_of(spread.most) - 4.0;
        if width > 10.0 {
            // Four figures fit above the thinnest bars.
            let size = if width < 20.0 { 8 } else { 9 };
            _ = writeln!(
                self.svg,
                "<text x=\"{middle:.1}\" y=\"{above:.1}\" text-anchor=\"middle\" font-size=\"{size}\">{}</text>",
                short(spread.median)
            );
        }
    }

    fn spread(&mut self, x: f64, axis: &Axis, spread: Spread, colour: &str) {
        let (from, to) = (axis.y_of(spread.least), axis.y_of(spread.most));
        _ = writeln!(self.svg, "<path d=\"M{x:.1} {from:.1}V{to:.1}\" stroke=\"{colour}\"/>");
    }

    fn line(&mut self, points: &[(f64, Spread)], axis: &Axis, style: Style, colour: &str) {
        let place = |(x, spread): &(f64, Spread)| format!("{x:.1},{:.1}", axis.y_of(spread.median));
        let places: Vec<String> = points.iter().map(place).collect();
        let dash = if style == Style::Computed { " stroke-dasharray=\"5 4\"" } else { "" };
        _ = writeln!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            places.join(" ")
        );
        if style == Style::Computed {
            return;
        }
        for (x, spread) in points {
            self.spread(*x, axis, *spread, colour);
            let y = axis.y_of(spread.median);
            _ = writeln!(
                self.svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"
            );
        }
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        _ = writeln!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn end(mut self) -> String {
        let bottom = TOP + PLOT_HEIGHT;
        _ = writeln!(
            self.svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{}\" fill=\"none\" stroke=\"#333333\"/>\n</svg>",
            WIDTH - RIGHT
        );
        self.svg
    }
}

/// The x and the row of each entry of the legend.
fn place_legend(series: &[Series]) -> Vec<(f64, usize)> {
    let (mut x, mut row) = (LEFT, 0);
    let place = |series: &Series| {
        let width = 52.0 + 7.4 * series.name.chars().count() as f64;
        if x + width > WIDTH - RIGHT {
            (x, row) = (LEFT, row + 1);
        }
        let place = (x, row);
        x += width;
        place
    };
    series.iter().map(place).collect()
}

/// A number as people read it: 0.05, 1.5, 12, 1,500, 1.5M.
pub fn number(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", trimmed(value / 1e6, 1)),
        1e3.. => format!("{},{:03}", value.round() as u64 / 1000, value.round() as u64 % 1000),
        100.0.. => trimmed(value, 0),
        10.0.. => trimmed(value, 1),
        _ => trimmed(value, 2),
    }
}

/// The same for above a bar, where there is little room.
fn short(value: f64) -> String {
    match value {
        0.0..1.0 => trimmed(value, 2),
        1.0..10.0 => trimmed(value, 1),
        _ => number(value.round()),
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.05, 1.5, 12.0, 999.0, 1500.0, 1_500_000.0].map(number);
        assert_eq!(texts, ["0", "0.05", "1.5", "12", "999", "1,500", "1.5M"]);
    }

    #[test]
    fn the_slowest_and_the_fastest_round_are_on_the_chart() {
        let spread = Spread { least: 0.5, median: 20.0, most: 300.0 };
        for scale in [Scale::FromZero, Scale::Logarithmic] {
            let axis = Axis::of([spread].into_iter(), scale);
            assert!(axis.least <= spread.least && axis.most >= spread.most, "{scale:?}");
        }
    }

    #[test]
    fn a_chart_names_its_axes_and_series() {
        let spread = Spread { least: 1.0, median: 2.0, most: 3.0 };
        let series =
            |name: &str, style| Series { name: name.into(), points: vec![(1.0, spread)], style };
        let labels = Labels { title: "a < b".into(), x: "threads".into(), y: "tasks/s".into() };
        let series = [series("raw", Style::Measured), series("formula", Style::Computed)];
        for svg in [
            lines(&labels, Scale::Logarithmic, &series),
            bars(&labels, Scale::FromZero, &["one".into(), "two".into()], &series),
        ] {
            for text in [">a &lt; b<", ">threads<", ">tasks/s<", ">raw<", ">formula<"] {
                assert!(svg.contains(text), "{text}: {svg}");
            }
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }
}
