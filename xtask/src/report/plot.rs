//! The plot of a family's speed against the problem size.

use super::format::tflops;
use super::tables::{column_name, columns};
use crate::results::{BenchFile, BenchRow};
use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 480);

/// TFLOP/s over B of the `step`, one line an implementation, for the dtype and D that were measured at most sizes; `None` when fewer than two
/// sizes were measured.
pub(crate) fn siglip_step(file: &BenchFile) -> Result<Option<String>> {
    let mut groups: Vec<((u64, &str), Vec<&BenchRow>)> = Vec::new();
    for row in file.rows.iter().filter(|row| row.family == "siglip" && row.op == "step") {
        let key = (row.shape.get("D").copied().unwrap_or(0), row.dtype.as_str());
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    let sizes = |rows: &[&BenchRow]| {
        let mut sizes: Vec<u64> = rows.iter().filter_map(|row| row.shape.get("B").copied()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let Some(((dim, dtype), rows)) = groups.into_iter().max_by_key(|(_, rows)| sizes(rows).len()) else {
        return Ok(None);
    };
    let sizes = sizes(&rows);
    if sizes.len() < 2 {
        return Ok(None);
    }
    let title = format!("SigLIP loss and gradients, {dtype}, D = {dim}, {}", file.header.gpu);
    draw(&title, &sizes, &rows).map(Some)
}

fn draw(title: &str, sizes: &[u64], rows: &[&BenchRow]) -> Result<String> {
    let lines: Vec<(String, Vec<(f64, f64)>)> = columns(rows)
        .iter()
        .map(|column| {
            let mine = rows.iter().filter(|row| (&row.implementation, &row.route) == (&column.0, &column.1));
            let mut points: Vec<(f64, f64)> =
                mine.filter_map(|row| Some((*row.shape.get("B")? as f64, tflops(row.flop, row.ms_median)))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (column_name(column), points)
        })
        .collect();
    let top = lines.iter().flat_map(|(_, points)| points).map(|point| point.1).fold(0.0, f64::max);
    let mut svg = String::new();
    render(&mut svg, title, sizes, &lines, top * 1.1).map_err(|error| anyhow!("drawing the plot: {error}"))?;
    // plotters leaves the file without a final newline
    if !svg.ends_with('\n') {
        svg.push('\n');
    }
    Ok(svg)
}

fn render(
    svg: &mut String,
    title: &str,
    sizes: &[u64],
    lines: &[(String, Vec<(f64, f64)>)],
    top: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (first, last) = (sizes[0] as f64, sizes[sizes.len() - 1] as f64);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((first..last).log_scale().base(2.0), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("B")
        .y_desc("TFLOP/s (6·B²·D per step)")
        .x_label_formatter(&|b| format!("{b:.0}"))
        .y_label_formatter(&|t| format!("{t:.0}"))
        .draw()?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let width = if name.starts_with("ours") { 3 } else { 1 };
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(width)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}
