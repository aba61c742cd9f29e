"""Counts one table of a lake with every reader that people use: argument 1 is its folder. Prints a JSON object."""
import json
import os
import sys

import chdb
import duckdb
import polars
from deltalake import DeltaTable

folder = sys.argv[1]
# ClickHouse reads what is in the folder that it was started in.
os.chdir(folder)
table = DeltaTable(folder)
names = [name.removeprefix("file://") for name in table.file_uris()]
print(json.dumps({
    "version": table.version(),
    "files": len(names),
    "deltalake": table.to_pyarrow_dataset().count_rows(),
    "duckdb": duckdb.execute("select count(distinct p_row_id) from read_parquet(?)", [names]).fetchone()[0],
    "polars": polars.scan_delta(folder).select(polars.col("p_row_id").n_unique()).collect().item(),
    "chdb": int(str(chdb.query(f"select uniqExact(p_row_id) from deltaLakeLocal('{folder}')", "CSV")).strip()),
}))
