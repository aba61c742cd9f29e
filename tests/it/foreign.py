"""Writes to a table as another engine does: argument 1 says what, 2 is the table's folder."""
import json
import pathlib
import sys
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

does, folder = sys.argv[1:3]
table = DeltaTable(folder)
if does == "checkpoint":
    table.create_checkpoint()
elif does == "optimize":
    table.optimize.compact()
elif does == "vacuum":
    table.vacuum(dry_run=False)
elif does == "append":
    write_deltalake(folder, table.to_pyarrow_table(), mode="append")
elif does == "delete":
    table.delete()
elif does == "int96":
    # Every file once more, its times in the form that Spark writes by default.
    adds = table.get_add_actions(flatten=True)
    adds = pa.table(adds).to_pylist()
    log = pathlib.Path(folder, "_delta_log")
    entry = ['{"commitInfo":{"operation":"OPTIMIZE"}}']
    for add in adds:
        path = pathlib.Path(folder, urllib.parse.unquote(add["path"]))
        anew = path.with_name("int96-" + path.name)
        pq.write_table(pq.ParquetFile(path).read(), anew, use_deprecated_int96_timestamps=True)
        day = {k.removeprefix("partition."): str(v) for k, v in add.items() if k.startswith("partition.")}
        below = urllib.parse.quote(str(anew.relative_to(folder)))
        entry.append(json.dumps({"remove": {"path": add["path"], "dataChange": False, "deletionTimestamp": 0}}))
        stats = json.dumps({"numRecords": add["num_records"]})
        entry.append(json.dumps({"add": {"path": below, "partitionValues": day, "size": anew.stat().st_size,
                                         "modificationTime": 0, "dataChange": False, "stats": stats}}))
    (log / f"{table.version() + 1:020}.json").write_text("\n".join(entry))
else:
    sys.exit(f"{does}?")
