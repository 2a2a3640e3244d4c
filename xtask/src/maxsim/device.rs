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
            Ok(Some(gpu.upload(&mask.iter().map(|keep| u8::from(*keep)).collect::<Vec<_>>())?))
        };
        Ok(Self {
            gpu: gpu.clone(),
            plan: Plan::new(gpu, tensors.problem.clone(), options)?,
            queries: gpu.upload(&tensors.queries)?,
            docs: gpu.upload(&tensors.docs)?,
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
        let gpu = self.gpu.clone();
        let view = |mask| VectorView::new("mask", mask, [cudarc::driver::DeviceSlice::len(mask)]);
        let inputs = Inputs {
            queries: MatrixView::new("queries", &self.queries, [queries.rows(), dim])?,
            docs: MatrixView::new("docs", &self.docs, [docs.rows(), dim])?,
            query_mask: self.query_mask.as_ref().map(view).transpose()?,
            doc_mask: self.doc_mask.as_ref().map(view).transpose()?,
        };
        let mut alone = gpu.upload(&vec![f32::NAN; count])?;
        let mut scores = gpu.upload(&vec![f32::NAN; count])?;
        let mut argmax = gpu.upload(&vec![i32::MIN; choices])?;
        self.plan.forward(&inputs, &mut VectorViewMut::new("scores", &mut alone, [count])?, None)?;
        self.plan.forward(
            &inputs,
            &mut VectorViewMut::new("scores", &mut scores, [count])?,
            Some(&mut VectorViewMut::new("argmax", &mut argmax, [choices])?),
        )?;
        let mut found = Found {
            scores: gpu.download(&scores)?,
            argmax: gpu.download(&argmax)?,
            d_queries: Vec::new(),
            d_docs: Vec::new(),
        };
        if let Some(d_scores) = &self.d_scores {
            let nan = T::rounded(f32::NAN);
            let mut d_queries = gpu.upload(&vec![nan; queries.rows() * dim])?;
            let mut d_docs = gpu.upload(&vec![nan; docs.rows() * dim])?;
            let mut gradients = Gradients {
                d_queries: Some(MatrixViewMut::new("d_queries", &mut d_queries, [queries.rows(), dim])?),
                d_docs: Some(MatrixViewMut::new("d_docs", &mut d_docs, [docs.rows(), dim])?),
            };
            let d_scores = VectorView::new("d_scores", d_scores, [count])?;
            let argmax = VectorView::new("argmax", &argmax, [choices])?;
            self.plan.backward(&inputs, &d_scores, &argmax, &mut gradients)?;
            found.d_queries = gpu.download(&d_queries)?;
            found.d_docs = gpu.download(&d_docs)?;
        }
        Ok((gpu.download(&alone)?, found))
    }
}
