//! What a plan keeps in device memory of its problem: offsets, tiles, the division of work, lists.

use kernel_core::Gpu;
use kernel_core::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};

use crate::error::Result;
use crate::kernels::{ItemsArg, MeetingsArg, TextsArg, pairing_code};
use crate::problem::{Pairing, Problem, Spans};
use crate::tiles::{Division, Even, QueryTile};

/// One uploaded array. Its address is stable; a plan uses it on its own stream only.
struct Table<T> {
    /// Kept for its address.
    _memory: Option<CudaSlice<T>>,
    address: u64,
    bytes: usize,
}

impl<T: DeviceRepr> Table<T> {
    /// Without a device nothing is uploaded, but counted.
    fn new(gpu: Option<&Gpu>, values: &[T]) -> Result<Self> {
        let bytes = size_of_val(values);
        let (Some(gpu), false) = (gpu, values.is_empty()) else { return Ok(Self { _memory: None, address: 0, bytes }) };
        let memory = gpu.upload(values)?;
        let address = {
            let (address, _guard) = memory.device_ptr(gpu.stream());
            address
        };
        Ok(Self { bytes: memory.num_bytes(), _memory: Some(memory), address })
    }
}

pub(crate) struct Tables {
    query_offsets: Table<u64>,
    doc_offsets: Table<u64>,
    list: Table<u32>,
    list_args: Table<u64>,
    tiles: Table<QueryTile>,
    segments: Table<u32>,
    chunk_starts: Table<u32>,
    starts: Table<u32>,
    block_firsts: Table<u32>,
    even: Even,
    query_meetings: [Table<u32>; 2],
    doc_meetings: [Table<u32>; 2],
}

impl Tables {
    /// Without a device they have their sizes and no addresses.
    pub(crate) fn new(gpu: Option<&Gpu>, problem: &Problem, division: &Division) -> Result<Self> {
        let offsets = |spans: &Spans| match spans {
            Spans::Padded { .. } => Vec::new(),
            Spans::Packed(offsets) => offsets.iter().map(|&offset| offset as u64).collect(),
        };
        let list: &[(usize, usize)] = match &problem.pairing {
            Pairing::List(list) => list,
            _ => &[],
        };
        let worked_out = matches!(problem.queries, Spans::Padded { length: 1.., .. });
        let one_chunk = division.chunk_count() == 1;
        let listed = matches!(problem.pairing, Pairing::List(_));
        let even = one_chunk && !listed && !problem.doc_mask && matches!(problem.docs, Spans::Padded { .. });
        let mut argument = 0u64;
        let arguments = list.iter().map(|&(query, _)| {
            let base = argument;
            argument += problem.queries.length(query) as u64;
            base
        });
        let meetings = |texts: usize, members: Vec<usize>| -> Result<[Table<u32>; 2]> {
            let (starts, slots) = if list.is_empty() { Default::default() } else { group(texts, &members) };
            Ok([Table::new(gpu, &starts)?, Table::new(gpu, &slots)?])
        };
        let block_firsts = match &problem.docs {
            Spans::Packed(offsets) if division.streamed => {
                division.starts.iter().flat_map(|&doc| [doc, offsets[doc as usize] as u32]).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            query_offsets: Table::new(gpu, &offsets(&problem.queries))?,
            doc_offsets: Table::new(gpu, &offsets(&problem.docs))?,
            list: Table::new(gpu, &list.iter().flat_map(|&(q, d)| [q as u32, d as u32]).collect::<Vec<_>>())?,
            list_args: Table::new(gpu, &arguments.collect::<Vec<_>>())?,
            // What the kernels can work out themselves is not uploaded.
            tiles: Table::new(gpu, if worked_out { &[] } else { &division.query_tiles })?,
            segments: Table::new(gpu, &division.query_segments)?,
            chunk_starts: Table::new(gpu, if one_chunk { &[] } else { &division.chunk_starts })?,
            starts: Table::new(gpu, if even { &[] } else { &division.starts })?,
            block_firsts: Table::new(gpu, &block_firsts)?,
            even: if even { division.even(problem) } else { Even::default() },
            query_meetings: meetings(problem.queries.count(), list.iter().map(|pair| pair.0).collect())?,
            doc_meetings: meetings(problem.docs.count(), list.iter().map(|pair| pair.1).collect())?,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let words = [&self.list, &self.segments, &self.chunk_starts, &self.starts, &self.block_firsts];
        let longs = [&self.query_offsets, &self.doc_offsets, &self.list_args];
        let meetings = self.query_meetings.iter().chain(&self.doc_meetings);
        let words: usize = words.into_iter().chain(meetings).map(|table| table.bytes).sum();
        words + longs.into_iter().map(|table| table.bytes).sum::<usize>() + self.tiles.bytes
    }

    pub(crate) fn items(&self, problem: &Problem, division: &Division) -> ItemsArg {
        let per_query = match problem.pairing {
            Pairing::Candidates { per_query } => per_query,
            _ => 1,
        };
        ItemsArg {
            pairing: pairing_code(&problem.pairing),
            docs: problem.docs.count() as u32,
            per_query: per_query as u32,
            parts: division.parts as u32,
            row_blocks: division.row_blocks as u32,
            chunks: division.chunk_count() as u32,
            list: self.list.address,
            list_args: self.list_args.address,
            row_block_cost: division.row_block_cost as u32,
            last_block_cost: division.last_block_cost as u32,
            even: self.even,
            query_tiles: self.tiles.address,
            chunk_starts: self.chunk_starts.address,
            starts: self.starts.address,
        }
    }

    pub(crate) fn segments(&self) -> u64 {
        self.segments.address
    }

    /// Each block's first document and that one's first row, and the end, where documents are packed and streamed.
    pub(crate) fn block_firsts(&self) -> u64 {
        self.block_firsts.address
    }

    /// The spans of one side; rows, mask and scales are the caller's to fill in.
    pub(crate) fn texts(&self, problem: &Problem) -> [TextsArg; 2] {
        let texts = |spans: &Spans, offsets: &Table<u64>| TextsArg {
            offsets: offsets.address,
            length: match spans {
                Spans::Padded { length, .. } => *length as u64,
                Spans::Packed(_) => 0,
            },
            count: spans.count() as u32,
            ..TextsArg::default()
        };
        [texts(&problem.queries, &self.query_offsets), texts(&problem.docs, &self.doc_offsets)]
    }

    /// The slots of each query, and of each document; empty outside of lists.
    pub(crate) fn meetings(&self) -> [MeetingsArg; 2] {
        let meetings = |[starts, slots]: &[Table<u32>; 2]| MeetingsArg { starts: starts.address, slots: slots.address };
        [meetings(&self.query_meetings), meetings(&self.doc_meetings)]
    }
}

/// The members of each text, ascending: where each text's begin, and all of them.
fn group(texts: usize, members: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; texts + 1];
    members.iter().for_each(|&text| starts[text + 1] += 1);
    for text in 0..texts {
        starts[text + 1] += starts[text];
    }
    let mut next = starts.clone();
    let mut slots = vec![0; members.len()];
    for (slot, &text) in members.iter().enumerate() {
        slots[next[text] as usize] = slot as u32;
        next[text] += 1;
    }
    (starts, slots)
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_keep_the_order_of_slots() {
        let (starts, slots) = super::group(3, &[2, 0, 2, 2, 0]);
        assert_eq!(starts, [0, 2, 2, 5]);
        assert_eq!(slots, [1, 4, 0, 2, 3]);
    }
}
