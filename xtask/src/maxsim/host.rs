//! Inputs and results on the host, and the scores by reference-cpu.

use crate::siglip::Number;
use maxsim_kernel::{Problem, Result, cpu};
use reference_cpu::{HostMatrix, HostMatrixMut};

/// Inputs of the scores, and the gradient that arrives at them.
pub(crate) struct Tensors<T> {
    pub(crate) problem: Problem,
    /// `[tokens, d]`
    pub(crate) queries: Vec<T>,
    pub(crate) docs: Vec<T>,
    pub(crate) query_mask: Option<Vec<bool>>,
    pub(crate) doc_mask: Option<Vec<bool>>,
    /// One for each score; none when no gradients are wanted.
    pub(crate) d_scores: Option<Vec<f32>>,
}

/// Results. Gradients are empty when none were wanted.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) scores: Vec<f32>,
    pub(crate) argmax: Vec<i32>,
    pub(crate) d_queries: Vec<T>,
    pub(crate) d_docs: Vec<T>,
}

/// By reference-cpu.
pub(crate) fn on_host<T: Number>(tensors: &Tensors<T>) -> Result<Found<T>> {
    let Problem { queries, docs, dim, .. } = &tensors.problem;
    let plan = cpu::Plan::new(tensors.problem.clone())?;
    let inputs = cpu::Inputs {
        queries: HostMatrix::new("queries", &tensors.queries, queries.rows(), *dim)?,
        docs: HostMatrix::new("docs", &tensors.docs, docs.rows(), *dim)?,
        query_mask: tensors.query_mask.as_deref(),
        doc_mask: tensors.doc_mask.as_deref(),
    };
    // Poisoned: what is not written is found.
    let nan = T::rounded(f32::NAN);
    let mut found = Found {
        scores: vec![f32::NAN; tensors.problem.scores()],
        argmax: vec![i32::MIN; tensors.problem.argmaxes()],
        d_queries: Vec::new(),
        d_docs: Vec::new(),
    };
    plan.forward(&inputs, &mut found.scores, Some(&mut found.argmax))?;
    if let Some(d_scores) = &tensors.d_scores {
        found.d_queries = vec![nan; tensors.queries.len()];
        found.d_docs = vec![nan; tensors.docs.len()];
        let mut d_queries = HostMatrixMut::new("d_queries", &mut found.d_queries, queries.rows(), *dim)?;
        let mut d_docs = HostMatrixMut::new("d_docs", &mut found.d_docs, docs.rows(), *dim)?;
        plan.backward(&inputs, d_scores, &found.argmax, Some(&mut d_queries), Some(&mut d_docs))?;
    }
    Ok(found)
}
