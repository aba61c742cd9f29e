"""Compaction beside DuckDB and Polars: `compaction.py FLARELAKE LAKE` (of many small files, as landed; it is copied, and stays).

Each merges every day of `cloudflare_httprequest` into one file in the order of time, zstd, row groups of 256 Ki rows. flarelake
also writes bloom filters and its index of addresses and hosts, reads back the ids of all that it wrote, and commits.
"""
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

program, lake = sys.argv[1], pathlib.Path(sys.argv[2])
home = pathlib.Path(tempfile.mkdtemp(prefix="compaction-", dir=os.environ.get("TMPDIR")))
TABLE = "cloudflare_httprequest"


def measured(what, arguments, size_of):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(["/usr/bin/time", "-f", "%M", *arguments], capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{what}: {done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(re.findall(r"\d+", done.stderr)[-1]) / 1024
    print(f"{what:>10}: {seconds:7.1f} s, {cpu:7.1f} s of CPU, {peak:6.0f} MB at most, {size_of() / 1e6:7.0f} MB written", flush=True)


def size(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.parquet"))


DUCKDB = """
import duckdb, glob, sys
days = sorted(glob.glob(sys.argv[1] + "/p_event_date=*"))
for n, day in enumerate(days):
    duckdb.sql(f"COPY (FROM read_parquet('{day}/*.parquet', hive_partitioning = false) ORDER BY p_event_time) "
               f"TO '{sys.argv[2]}/{n}.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 262144)")
"""
POLARS = """
import glob, sys
import polars
for n, day in enumerate(sorted(glob.glob(sys.argv[1] + "/p_event_date=*"))):
    rows = polars.read_parquet(day + "/*.parquet", hive_partitioning=False).sort("p_event_time")
    rows.write_parquet(f"{sys.argv[2]}/{n}.parquet", compression="zstd", compression_level=1, row_group_size=262144)
"""

copy = home / "lake"
shutil.copytree(lake, copy)
print(f"{size(copy / TABLE) / 1e6:.0f} MB in {len(list((copy / TABLE).rglob('*.parquet')))} files")
# The peers read before anything is merged, and write elsewhere.
for what, text in [("DuckDB", DUCKDB), ("Polars", POLARS)]:
    out = home / what
    out.mkdir()
    measured(what, [sys.executable, "-c", text, str(copy / TABLE), str(out)], lambda: size(out))
    shutil.rmtree(out)
before = size(copy / TABLE)
measured("flarelake", [program, "--lake", str(copy), "compact", "--table", TABLE], lambda: size(copy / TABLE) - before)
shutil.rmtree(home)
