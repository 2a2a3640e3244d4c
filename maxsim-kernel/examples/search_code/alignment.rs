//! The picture: a query's word pieces on the left, the code's on the right, and a line from each to the one that it chose.

use std::fmt::Write;

use crate::data::{Corpus, DIM};

const LINE: usize = 15;
const TOP: usize = 56;
const LEFT: usize = 180;
const RIGHT: usize = 460;
const COLUMN: usize = 150;

/// An SVG of what each token of `query` chose in function `doc`.
pub(crate) fn draw(corpus: &Corpus, query: usize, doc: usize, choices: &[i32]) -> String {
    let (query_text, code_text) = (&corpus.texts[query], &corpus.texts[doc]);
    let (pieces, code) = (&query_text.query_tokens, &code_text.code_tokens);
    // Long functions wrap into columns as high as the query's needs and no less than 30 lines.
    let rows = pieces.len().max(30);
    let columns = code.len().div_ceil(rows);
    let (width, height) = (RIGHT + columns * COLUMN + 20, TOP + rows * LINE + 20);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"22\" font-size=\"14\">{}</text>\n<text x=\"20\" y=\"40\" fill=\"#666666\">{}</text>\n",
        escaped(&query_text.query),
        escaped(&code_text.source),
    );
    let place = |token: usize| (RIGHT + token / rows * COLUMN, TOP + token % rows * LINE);
    let chosen = |token: usize| choices.iter().any(|choice| usize::try_from(*choice) == Ok(token));
    for (index, choice) in choices.iter().enumerate() {
        let Ok(token) = usize::try_from(*choice) else { continue };
        let similarity =
            similarity(corpus, corpus.queries.span(query).start + index, corpus.code.span(doc).start + token);
        let ((x, y), from) = (place(token), TOP + index * LINE);
        let middle = (LEFT + x) / 2;
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {} C{middle} {} {middle} {} {} {}\" fill=\"none\" stroke=\"#1f6fb4\" stroke-width=\"{:.1}\" stroke-opacity=\"{:.2}\"/>",
            from + 6,
            from + 6,
            y + 6,
            x - 6,
            y + 6,
            0.5 + 2.0 * similarity.max(0.0),
            0.2 + 0.7 * similarity.clamp(0.0, 1.0),
        );
    }
    for (index, piece) in pieces.iter().enumerate() {
        let y = TOP + index * LINE + 10;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", LEFT - 6, escaped(piece));
    }
    for (token, piece) in code.iter().enumerate() {
        let (x, y) = place(token);
        let colour = if chosen(token) { "#000000" } else { "#aaaaaa" };
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" fill=\"{colour}\">{}</text>", y + 10, escaped(piece));
    }
    svg + "</svg>\n"
}

fn similarity(corpus: &Corpus, query_row: usize, code_row: usize) -> f32 {
    let query = &corpus.query_tokens[query_row * DIM..][..DIM];
    let code = &corpus.code_tokens[code_row * DIM..][..DIM];
    query.iter().zip(code).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
