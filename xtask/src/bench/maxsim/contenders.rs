//! Ours.

use super::problems::Op;
use crate::bench::contender::Contender;
use crate::bench::timing::Stopwatch;
use anyhow::Result;
use cudarc::driver::{CudaSlice, PinnedHostSlice};
use half::bf16;
use maxsim_kernel::{
    BackwardRoute, Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Plan, Problem, TopK, VectorView, VectorViewMut,
};
use std::cell::RefCell;
use std::time::Instant;

/// Device memory of one problem, shared by the routes.
pub(crate) struct Buffers {
    queries: CudaSlice<bf16>,
    pub(crate) docs: CudaSlice<bf16>,
    scores: CudaSlice<f32>,
    argmax: CudaSlice<i32>,
    d_scores: CudaSlice<f32>,
    d_queries: CudaSlice<bf16>,
    d_docs: CudaSlice<bf16>,
}

impl Buffers {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, op: Op, queries: &[bf16], docs: &[bf16]) -> Result<Self> {
        let step = |count: usize| if op == Op::ScoreStep { count } else { 1 };
        Ok(Self {
            queries: gpu.upload(queries)?,
            docs: gpu.upload(docs)?,
            scores: gpu.alloc(problem.scores())?,
            argmax: gpu.alloc(step(problem.argmaxes()))?,
            d_scores: gpu.upload(&vec![1.0; problem.scores()])?,
            d_queries: gpu.alloc(step(queries.len()))?,
            d_docs: gpu.alloc(step(docs.len()))?,
        })
    }

    fn output_bytes(&self, op: Op) -> usize {
        let gradients = (self.d_queries.len() + self.d_docs.len()) * size_of::<bf16>();
        self.scores.len() * 4 + if op == Op::ScoreStep { self.argmax.len() * 4 + gradients } else { 0 }
    }
}

pub(crate) struct Ours<'a> {
    pub(crate) plan: Plan,
    pub(crate) op: Op,
    pub(crate) auto: bool,
    pub(crate) buffers: &'a RefCell<Buffers>,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
    pub(crate) route: String,
}

impl Ours<'_> {
    fn queue(plan: &mut Plan, op: Op, buffers: &mut Buffers) -> Result<()> {
        let Problem { queries, docs, dim, .. } = plan.problem();
        let (query_shape, doc_shape) = ([queries.rows(), *dim], [docs.rows(), *dim]);
        let (scores, argmaxes) = (plan.problem().scores(), plan.problem().argmaxes());
        let inputs = Inputs {
            queries: MatrixView::new("queries", &buffers.queries, query_shape)?,
            docs: MatrixView::new("docs", &buffers.docs, doc_shape)?,
            query_mask: None,
            doc_mask: None,
        };
        let mut found = VectorViewMut::new("scores", &mut buffers.scores, [scores])?;
        if op == Op::Score {
            return Ok(plan.forward(&inputs, &mut found, None)?);
        }
        let mut argmax = VectorViewMut::new("argmax", &mut buffers.argmax, [argmaxes])?;
        plan.forward(&inputs, &mut found, Some(&mut argmax))?;
        let d_scores = VectorView::new("d_scores", &buffers.d_scores, [scores])?;
        let mut gradients = Gradients {
            d_queries: Some(MatrixViewMut::new("d_queries", &mut buffers.d_queries, query_shape)?),
            d_docs: Some(MatrixViewMut::new("d_docs", &mut buffers.d_docs, doc_shape)?),
        };
        Ok(plan.backward(&inputs, &d_scores, &argmax.as_view(), &mut gradients)?)
    }

    pub(crate) fn name(plan: &Plan, op: Op) -> String {
        match op {
            Op::Score => plan.route().to_string(),
            Op::ScoreStep => format!("{}, {}", plan.route(), plan.backward_route()),
        }
    }

    pub(crate) fn is_auto(plan: &Plan, automatic: &Plan, op: Op) -> bool {
        let backward = |plan: &Plan| if op == Op::Score { BackwardRoute::Auto } else { plan.backward_route() };
        plan.route() == automatic.route() && backward(plan) == backward(automatic)
    }
}

/// Scores of one query after another against copies of the documents that no cache holds together, with nothing between the calls: what a
/// search of a large corpus sees, without the start and the end of a lone call.
pub(crate) struct InTurn<'a> {
    pub(crate) plan: Plan,
    pub(crate) buffers: &'a RefCell<Buffers>,
    pub(crate) copies: Vec<CudaSlice<bf16>>,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
}

impl InTurn<'_> {
    const COPIES: usize = 3;
    /// Calls of one sample.
    const CALLS: usize = 4 * Self::COPIES;

    pub(crate) fn copies(gpu: &Gpu, docs: &CudaSlice<bf16>) -> Result<Vec<CudaSlice<bf16>>> {
        let copy = |_| {
            let mut copy = gpu.alloc(docs.len())?;
            gpu.stream().memcpy_dtod(docs, &mut copy)?;
            Ok(copy)
        };
        (0..Self::COPIES).map(copy).collect()
    }
}

impl Contender for InTurn<'_> {
    fn implementation(&self) -> &str {
        "ours"
    }

    fn route(&self) -> &str {
        "hopper, inputs in turn"
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { queries, scores, .. } = &mut *buffers;
        let (plan, copies) = (&mut self.plan, &self.copies);
        let mut call = 0;
        self.stopwatch.borrow_mut().streak(reps.div_ceil(Self::CALLS), Self::CALLS, || {
            let problem = plan.problem();
            let (dim, count) = (problem.dim, problem.scores());
            let inputs = Inputs {
                queries: MatrixView::new("queries", &*queries, [problem.queries.rows(), dim])?,
                docs: MatrixView::new("docs", &copies[call % copies.len()], [problem.docs.rows(), dim])?,
                query_mask: None,
                doc_mask: None,
            };
            call += 1;
            Ok(plan.forward(&inputs, &mut VectorViewMut::new("scores", &mut *scores, [count])?, None)?)
        })
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        Ok((None, None))
    }
}

/// What is timed of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Searched {
    /// The corpus comes from page-locked host memory.
    Host,
    /// The copies of it alone.
    Copied,
    /// The corpus lies on the device.
    Device,
}

/// A search of a whole corpus, by the host's clock.
pub(crate) struct Search<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) top_k: &'a RefCell<TopK>,
    pub(crate) queries: &'a CudaSlice<bf16>,
    pub(crate) query_shape: [usize; 2],
    pub(crate) host: &'a PinnedHostSlice<bf16>,
    pub(crate) device: &'a RefCell<CudaSlice<bf16>>,
    pub(crate) searched: Searched,
}

impl Contender for Search<'_> {
    fn implementation(&self) -> &str {
        "ours"
    }

    fn route(&self) -> &str {
        match self.searched {
            Searched::Host => "corpus streamed from the host",
            Searched::Copied => "the copies alone",
            Searched::Device => "corpus on the device",
        }
    }

    fn is_auto(&self) -> bool {
        self.searched == Searched::Host
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        let queries = MatrixView::new("queries", self.queries, self.query_shape)?;
        let (mut top_k, mut device) = (self.top_k.borrow_mut(), self.device.borrow_mut());
        let mut times = Vec::new();
        for _ in 0..reps {
            self.gpu.synchronize()?;
            let start = Instant::now();
            match self.searched {
                Searched::Host => drop(top_k.search_host(&queries, self.host.as_slice()?)?),
                Searched::Copied => self.gpu.stream().memcpy_htod(self.host, &mut *device)?,
                Searched::Device => drop(top_k.search(&queries, &device.slice(..))?),
            }
            self.gpu.synchronize()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        let held = self.top_k.borrow().workspace_bytes() as u64;
        Ok(((self.searched != Searched::Copied).then_some(held), None))
    }
}

impl Contender for Ours<'_> {
    fn implementation(&self) -> &str {
        "ours"
    }

    fn route(&self) -> &str {
        &self.route
    }

    fn is_auto(&self) -> bool {
        self.auto
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        let mut buffers = self.buffers.borrow_mut();
        let queue = || Self::queue(&mut self.plan, self.op, &mut buffers);
        self.stopwatch.borrow_mut().round(reps, 1, queue)
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        let mut buffers = self.buffers.borrow_mut();
        let peak = self.plan.workspace_bytes() + buffers.output_bytes(self.op);
        let host = self.stopwatch.borrow().host_us(|| Self::queue(&mut self.plan, self.op, &mut buffers))?;
        Ok((Some(peak as u64), Some(host)))
    }
}
