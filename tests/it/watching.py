"""Reads one table again and again while it is written and kept up: argument 1 is its folder, 2 a file whose being there ends it.

Each read is of one version: deltalake reads the log, and PyArrow, DuckDB and Polars read the files that it names. Prints one JSON
line: how many versions were read, and the last count. Fails if two engines differ, a row is there twice, or the count falls."""
import json
import os
import sys

import duckdb
import polars
from deltalake import DeltaTable

folder, end = sys.argv[1:3]
reads, last, versions = 0, 0, set()
connection = duckdb.connect()
while not os.path.exists(end) or reads < 3:
    table = DeltaTable(folder)
    files = table.file_uris()
    if not files:
        continue
    arrow = table.to_pyarrow_dataset().to_table(columns=["p_row_id"])
    count = arrow.num_rows
    names = [name.removeprefix("file://") for name in files]
    rows, distinct = connection.execute("select count(*), count(distinct p_row_id) from read_parquet(?)", [names]).fetchone()
    lazy = polars.scan_delta(folder, version=table.version()).select(polars.len()).collect().item()
    if not count == rows == distinct == lazy:
        sys.exit(f"version {table.version()}: PyArrow {count}, DuckDB {rows} with {distinct} distinct, Polars {lazy}")
    if count < last:
        sys.exit(f"version {table.version()}: {count} rows after {last}")
    reads, last = reads + 1, count
    versions.add(table.version())
print(json.dumps({"reads": reads, "versions": len(versions), "rows": last}))
