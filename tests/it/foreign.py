"""Writes to a table as another engine does: argument 1 says what, 2 is the table's folder."""
import sys

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
else:
    sys.exit(f"{does}?")
