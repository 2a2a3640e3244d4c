//! Loss and accuracy over the steps, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::train::Run;

pub(crate) fn draw(path: &Path, run: &Run) -> Result<()> {
    let failed = |error: Box<dyn std::error::Error>| anyhow!("drawing {}: {error}", path.display());
    render(path, run).map_err(failed)
}

fn render(path: &Path, run: &Run) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let steps = 0..run.losses.len().max(1);
    let most = run.losses.iter().fold(0.1, |most: f32, loss| most.max(*loss));
    let mut chart = ChartBuilder::on(&root)
        .caption("A gated MLP on handwritten digits: training loss and test accuracy", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .right_y_label_area_size(56)
        .build_cartesian_2d(steps.clone(), 0.0..f64::from(most) * 1.05)?
        .set_secondary_coord(steps, 0.8..1.0);
    chart.configure_mesh().x_desc("step").y_desc("loss of a batch").draw()?;
    chart.configure_secondary_axes().y_desc("test accuracy").draw()?;

    let losses = run.losses.iter().enumerate().map(|(step, loss)| (step, f64::from(*loss)));
    chart.draw_series(LineSeries::new(losses, BLACK.stroke_width(1)))?.label("loss").legend(key(BLACK.to_rgba()));
    let colour = Palette99::pick(1).to_rgba();
    let accuracies = run.accuracies.iter().map(|(step, accuracy)| (*step, accuracy.max(0.8)));
    let series = chart.draw_secondary_series(LineSeries::new(accuracies, colour.stroke_width(2)))?;
    series.label("test accuracy").legend(key(colour));
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

fn key(colour: RGBAColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
}
