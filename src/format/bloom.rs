//! Looks a value up in a Parquet bloom filter, reading 32 bytes of what may be a megabyte. As specified in
//! <https://github.com/apache/parquet-format/blob/master/BloomFilter.md>.

use std::ops::Range;

use parquet::file::metadata::ColumnChunkMetaData;
use twox_hash::XxHash64;

/// Bytes of one block: eight words of 32 bits.
const BLOCK: u64 = 32;
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

pub fn hash(value: &str) -> u64 {
    XxHash64::oneshot(0, value.as_bytes())
}

/// Where in the file the block is that knows of a hash; none if the column has no filter of a known form.
pub fn block_of(column: &ColumnChunkMetaData, hash: u64) -> Option<Range<u64>> {
    let (offset, length) = (
        u64::try_from(column.bloom_filter_offset()?).ok()?,
        u64::try_from(column.bloom_filter_length()?).ok()?,
    );
    // A header of some 16 bytes, and then the bits: a power of two. Of other lengths the header would seem
    // longer.
    let bits = 1_u64 << length.checked_ilog2()?;
    let header = length - bits;
    if bits < BLOCK || header == 0 || header > 24 {
        return None;
    }
    let block = ((hash >> 32) * (bits / BLOCK)) >> 32;
    let start = offset + header + block * BLOCK;
    Some(start..start + BLOCK)
}

/// Whether the value may be in the column: never false for one that is.
pub fn may_hold(block: &[u8], hash: u64) -> bool {
    let words = block.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    words.zip(SALT).all(|(word, salt)| word & (1 << ((hash as u32).wrapping_mul(salt) >> 27)) != 0)
}
