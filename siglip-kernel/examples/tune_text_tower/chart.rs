//! Loss and recall over the steps, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// What one step gave.
pub(crate) struct Point {
    pub(crate) step: usize,
    pub(crate) loss: f32,
    /// Validation recall@1 and recall@10 after the step.
    pub(crate) recall: [f64; 2],
}

/// `before`: the recall without training.
pub(crate) fn draw(path: &Path, before: [f64; 2], points: &[Point]) -> Result<()> {
    let failed = |error: Box<dyn std::error::Error>| anyhow!("drawing {}: {error}", path.display());
    render(path, before, points).map_err(failed)
}

fn render(path: &Path, before: [f64; 2], points: &[Point]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let steps = 0..points.last().map_or(1, |point| point.step);
    let most = points.iter().fold(0.0, |most: f64, point| most.max(point.loss.into()));
    let mut chart = ChartBuilder::on(&root)
        .caption("Locked-tower tuning: training loss and validation recall", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .right_y_label_area_size(56)
        .build_cartesian_2d(steps.clone(), 0.0..most * 1.05)?
        .set_secondary_coord(steps, 0.5..1.0);
    chart.configure_mesh().x_desc("step").y_desc("loss").draw()?;
    chart.configure_secondary_axes().y_desc("recall").draw()?;

    let losses = points.iter().map(|point| (point.step, f64::from(point.loss)));
    chart.draw_series(LineSeries::new(losses, BLACK.stroke_width(2)))?.label("loss").legend(key(BLACK.to_rgba()));
    for (index, name) in ["recall@1", "recall@10"].into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let after = points.iter().map(|point| (point.step, point.recall[index]));
        let line = std::iter::once((0, before[index])).chain(after);
        let series = chart.draw_secondary_series(LineSeries::new(line, colour.stroke_width(2)))?;
        series.label(name).legend(key(colour));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

fn key(colour: RGBAColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
}
