//! Device buffers of one problem, and the calls on them.

use super::host::{Found, Tensors};
use crate::siglip::Number;
use cudarc::driver::CudaSlice;
use maxsim_kernel::{
    Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Problem, Result, VectorView, VectorViewMut,
};

/// Inputs and outputs of one problem on the device.
pub(crate) struct DeviceCall<T> {
    gpu: Gpu,
    pub(crate) plan: Plan,
    queries: CudaSlice<T>,
    docs: CudaSlice<T>,
    query_mask: Option<CudaSlice<u8>>,
    doc_mask: Option<CudaSlice<u8>>,
    d_scores: Option<CudaSlice<f32>>,
}

impl<T: Number> DeviceCall<T> {
    /// Uploads the inputs and makes the plan.
    pub(crate) fn new(gpu: &Gpu, tensors: &Tensors<T>, options: Options) -> Result<Self> {
        let bytes = |mask: &Option<Vec<bool>>| -> Result<Option<CudaSlice<u8>>> {
            let Some(mask) = mask else { return Ok(None) };
            let mut bytes: Vec<_> = mask.iter().map(|keep| u8::from(*keep)).collect();
            bytes.resize(bytes.len().max(1), 0);
            Ok(Some(gpu.upload(&bytes)?))
        };
        // A side without a token is given as one row of anything.
        let none = vec![T::rounded(f32::NAN); tensors.problem.dim];
        let rows = |rows: &[T]| gpu.upload(if rows.is_empty() { &none } else { rows });
        Ok(Self {
            gpu: gpu.clone(),
            plan: Plan::new(gpu, tensors.problem.clone(), options)?,
            queries: rows(&tensors.queries)?,
            docs: rows(&tensors.docs)?,
            query_mask: bytes(&tensors.query_mask)?,
            doc_mask: bytes(&tensors.doc_mask)?,
            d_scores: tensors.d_scores.as_ref().map(|d_scores| gpu.upload(d_scores)).transpose()?,
        })
    }

    /// Scores without choices, scores with them, and gradients when there is something to differentiate; into poisoned outputs, once the
    /// device is done. The first of the pair is of the scores alone.
    pub(crate) fn run(&mut self) -> Result<(Vec<f32>, Found<T>)> {
        let Problem { queries, docs, dim, .. } = self.plan.problem().clone();
        let (count, choices) = (self.plan.problem().scores(), self.plan.problem().argmaxes());
        let (entries, query_shape, doc_shape) =
            (choices.max(1), [queries.matrix_rows(), dim], [docs.matrix_rows(), dim]);
        let gpu = self.gpu.clone();
        let view = |mask| VectorView::new("mask", mask, [cudarc::driver::DeviceSlice::len(mask)]);
        let inputs = Inputs {
            queries: MatrixView::new("queries", &self.queries, query_shape)?,
            docs: MatrixView::new("docs", &self.docs, doc_shape)?,
            query_mask: self.query_mask.as_ref().map(view).transpose()?,
            doc_mask: self.doc_mask.as_ref().map(view).transpose()?,
        };
        let mut alone = gpu.upload(&vec![f32::NAN; count])?;
        let mut scores = gpu.upload(&vec![f32::NAN; count])?;
        let mut argmax = gpu.upload(&vec![i32::MIN; entries])?;
        self.plan.forward(&inputs, &mut VectorViewMut::new("scores", &mut alone, [count])?, None)?;
        self.plan.forward(
            &inputs,
            &mut VectorViewMut::new("scores", &mut scores, [count])?,
            Some(&mut VectorViewMut::new("argmax", &mut argmax, [entries])?),
        )?;
        let mut found = Found {
            scores: gpu.download(&scores)?,
            argmax: gpu.download(&argmax)?[..choices].to_vec(),
            d_queries: Vec::new(),
            d_docs: Vec::new(),
        };
        if let Some(d_scores) = &self.d_scores {
            let nan = T::rounded(f32::NAN);
            let mut d_queries = gpu.upload(&vec![nan; query_shape[0] * dim])?;
            let mut d_docs = gpu.upload(&vec![nan; doc_shape[0] * dim])?;
            let mut gradients = Gradients {
                d_queries: Some(MatrixViewMut::new("d_queries", &mut d_queries, query_shape)?),
                d_docs: Some(MatrixViewMut::new("d_docs", &mut d_docs, doc_shape)?),
            };
            let d_scores = VectorView::new("d_scores", d_scores, [count])?;
            let argmax = VectorView::new("argmax", &argmax, [entries])?;
            self.plan.backward(&inputs, &d_scores, &argmax, &mut gradients)?;
            found.d_queries = gpu.download(&d_queries)?[..queries.rows() * dim].to_vec();
            found.d_docs = gpu.download(&d_docs)?[..docs.rows() * dim].to_vec();
        }
        Ok((gpu.download(&alone)?, found))
    }
}
