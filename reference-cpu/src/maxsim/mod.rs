//! Late-interaction scores (MaxSim), forward and backward.
//!
//! ```text
//! s[q, d] = Σ_i max_j <Q[q, i], D[d, j]>
//! ```
//!
//! over the query's and the document's tokens that the masks keep (Khattab and Zaharia, "ColBERT",
//! [arXiv 2004.12832](https://arxiv.org/abs/2004.12832)), optionally of tokens normalised to `x / √max(|x|², 1e-12)`. Queries and documents are
//! [padded](Tokens::padded) or [packed](Tokens::packed); a [`Pairing`] says which meet. Scores are f32.
//!
//! A query or a document without kept tokens scores exactly 0 and has a gradient of exactly 0. Equal similarities count for the lowest
//! index. A NaN similarity makes the score NaN. What a masked token holds never matters. The cost is 2·d flop for each pair of kept tokens;
//! results have the same bits on every run, whatever the number of threads.

mod backward;
mod forward;
mod items;
mod tokens;

pub use backward::backward;
pub use forward::forward;
pub use items::{Pairing, Problem};
pub use tokens::Tokens;
