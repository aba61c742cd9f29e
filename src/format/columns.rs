//! The columns of a row group under way: each is encoded by itself, by one thread or by several.

use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::Result;
use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::SchemaDescriptor;
use rayon::ThreadPool;
use rayon::prelude::*;

/// Rows of a row group, encoded as far as they came. Until it ends they are in memory.
pub struct Columns {
    /// For each of the table's columns the writers of its leaves: a map has two.
    writers: Vec<Vec<ArrowColumnWriter>>,
    rows: usize,
}

impl Columns {
    /// The row group with this number.
    pub fn begin(
        factory: &ArrowRowGroupWriterFactory,
        schema: &SchemaDescriptor,
        group: usize,
    ) -> Result<Self> {
        let mut writers: Vec<_> = schema.root_schema().get_fields().iter().map(|_| Vec::new()).collect();
        for (leaf, writer) in factory.create_column_writers(group)?.into_iter().enumerate() {
            writers[schema.get_column_root_idx(leaf)].push(writer);
        }
        Ok(Self { writers, rows: 0 })
    }

    /// Encodes rows, by these threads; none: by the one that calls.
    pub fn write(&mut self, rows: &RecordBatch, threads: Option<&ThreadPool>) -> Result<()> {
        let schema = rows.schema_ref();
        let encode = |(column, writers): (usize, &mut Vec<ArrowColumnWriter>)| {
            let leaves = compute_leaves(schema.field(column), rows.column(column))?;
            writers.iter_mut().zip(&leaves).try_for_each(|(writer, leaf)| writer.write(leaf))
        };
        match threads {
            Some(threads) => {
                threads.install(|| self.writers.par_iter_mut().enumerate().try_for_each(encode))?
            }
            None => self.writers.iter_mut().enumerate().try_for_each(encode)?,
        }
        self.rows += rows.num_rows();
        Ok(())
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes so far, by estimation.
    pub fn bytes(&self) -> usize {
        self.writers.iter().flatten().map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    /// Ends the row group, and puts it into the file.
    pub fn end<W: std::io::Write + Send>(
        self,
        mut group: SerializedRowGroupWriter<'_, W>,
        threads: Option<&ThreadPool>,
    ) -> Result<()> {
        let writers: Vec<_> = self.writers.into_iter().flatten().collect();
        let chunks = match threads {
            Some(threads) => threads.install(|| {
                writers.into_par_iter().map(ArrowColumnWriter::close).collect::<Result<Vec<_>>>()
            })?,
            None => writers.into_iter().map(ArrowColumnWriter::close).collect::<Result<Vec<_>>>()?,
        };
        for chunk in chunks {
            chunk.append_to_row_group(&mut group)?;
        }
        group.close()?;
        Ok(())
    }
}
