//! What goes in and out of a call, and its checks.

use kernel_core::{Element, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut, check_disjoint};

use crate::error::Result;
use crate::problem::{Problem, Spans, shape};

type Named = (&'static str, std::ops::Range<u64>);

/// The inputs of a call. They are only read.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// Query tokens, one a row: `[Nq · Lq, d]` padded, `[total, d]` packed ([`Spans::matrix_rows`] rows).
    pub queries: MatrixView<'a, T>,
    /// Document tokens, likewise.
    pub docs: MatrixView<'a, T>,
    /// One byte for each query token, nonzero to keep it. What a masked token holds never matters.
    pub query_mask: Option<VectorView<'a, u8>>,
    /// The same for document tokens.
    pub doc_mask: Option<VectorView<'a, u8>>,
}

/// What [`Plan::backward`](crate::Plan::backward) writes, in the dtype of the tokens; each is computed only when asked for. Every token's
/// row is overwritten; nothing is read.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// Gradient of the query tokens, shaped like them.
    pub d_queries: Option<MatrixViewMut<'a, T>>,
    /// Gradient of the document tokens, shaped like them.
    pub d_docs: Option<MatrixViewMut<'a, T>>,
}

impl<T: Element> Inputs<'_, T> {
    /// `alignment`: in bytes, of every row.
    pub(crate) fn check(&self, gpu: &Gpu, problem: &Problem, alignment: usize) -> Result<()> {
        if T::DTYPE != problem.dtype {
            let expected = problem.dtype.to_string();
            return Err(kernel_core::Error::DType { what: "queries and docs", found: T::DTYPE, expected }.into());
        }
        for (view, spans) in [(&self.queries, &problem.queries), (&self.docs, &problem.docs)] {
            view.require_shape([spans.matrix_rows(), problem.dim])?;
            view.check_context(gpu)?;
            view.require_alignment(alignment)?;
        }
        check_mask("query_mask", self.query_mask.as_ref(), problem.query_mask, &problem.queries, gpu)?;
        check_mask("doc_mask", self.doc_mask.as_ref(), problem.doc_mask, &problem.docs, gpu)
    }

    fn ranges(&self) -> Vec<Named> {
        let masks = [&self.query_mask, &self.doc_mask].into_iter().flatten();
        [self.queries.named_range(), self.docs.named_range()]
            .into_iter()
            .chain(masks.map(|mask| mask.named_range()))
            .collect()
    }

    pub(crate) fn check_forward(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        scores: &VectorViewMut<'_, f32>,
        argmax: Option<&VectorViewMut<'_, i32>>,
    ) -> Result<()> {
        scores.require_shape([problem.scores()])?;
        scores.check_context(gpu)?;
        let mut written = vec![scores.named_range()];
        if let Some(argmax) = argmax {
            argmax.require_shape([problem.argmaxes().max(1)])?;
            argmax.check_context(gpu)?;
            written.push(argmax.named_range());
        }
        Ok(check_disjoint(&self.ranges(), &written)?)
    }

    pub(crate) fn check_backward(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        d_scores: &VectorView<'_, f32>,
        argmax: &VectorView<'_, i32>,
        gradients: &Gradients<'_, T>,
    ) -> Result<()> {
        d_scores.require_shape([problem.scores()])?;
        d_scores.check_context(gpu)?;
        argmax.require_shape([problem.argmaxes().max(1)])?;
        argmax.check_context(gpu)?;
        let mut read = self.ranges();
        read.extend([d_scores.named_range(), argmax.named_range()]);
        let mut written = Vec::new();
        for (gradient, spans) in [(&gradients.d_queries, &problem.queries), (&gradients.d_docs, &problem.docs)] {
            if let Some(gradient) = gradient {
                gradient.require_shape([spans.matrix_rows(), problem.dim])?;
                gradient.check_context(gpu)?;
                written.push(gradient.named_range());
            }
        }
        Ok(check_disjoint(&read, &written)?)
    }
}

fn check_mask(
    what: &'static str,
    mask: Option<&VectorView<'_, u8>>,
    planned: bool,
    spans: &Spans,
    gpu: &Gpu,
) -> Result<()> {
    match (mask, planned) {
        (None, false) => Ok(()),
        (Some(mask), true) => {
            mask.require_shape([spans.matrix_rows()])?;
            Ok(mask.check_context(gpu)?)
        }
        (None, true) => {
            Err(shape(what, "none", format!("[{}], as the plan was made with a mask", spans.matrix_rows())))
        }
        (Some(_), false) => Err(shape(what, "a mask", "none, as the plan was made without (Problem::with_masks)")),
    }
}
