"""The saved queries and a search, beside DuckDB on the same Parquet files: prints a table.

    cargo build --release
    pip install duckdb pyarrow
    python benches/peers/queries.py [ROWS]

Everything runs on the same cores, one after the other, best of three. flarelake is timed as a whole process, and once more
without what `SELECT 1` takes (starting, reading the logs); DuckDB inside one process that has started and knows the files.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import warnings

import duckdb

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "flarelake"
ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
SINCE = "2020-01-01"
# Questions about the lake itself: other engines don't have its tables of files and objects.
OURS_ALONE = {"files_and_sizes", "freshness", "rejects_by_reason"}
TABLES = {"cloudflare_httprequest": "Cloudflare.HttpRequest", "cloudflare_firewall": "Cloudflare.Firewall", "cloudflare_spectrum": "Cloudflare.Spectrum"}
# The functions that DuckDB calls something else.
MACROS = """
CREATE MACRO to_unixtime(t) AS epoch(t);
CREATE MACRO approx_percentile_cont(x, p) AS approx_quantile(x, p);
"""


def best(work):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def flarelake(*arguments):
    return subprocess.run([PROGRAM, *arguments], check=True, capture_output=True, text=True).stdout


def make(folder):
    for table, log_type in TABLES.items():
        rows = ROWS if table.endswith("httprequest") else ROWS // 10
        flarelake("generate", "--log-type", log_type, "--rows", str(rows), "--files", "12", "--gzip", "--seed", "1", "--span", "30d", "--odd", "0", "--out", f"{folder}/logs/{table}")
        flarelake("--lake", f"{folder}/lake", "backfill", f"{folder}/logs/{table}")


def peer(lake):
    db = duckdb.connect()
    db.sql(MACROS)
    for table in TABLES:
        db.sql(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{lake}/{table}/*/*.parquet', hive_partitioning = true)")
    common = "p_event_time, p_parse_time, p_log_type, p_row_id, p_any_ip_addresses"
    lists = {"cloudflare_spectrum": "NULL::VARCHAR[] AS p_any_domain_names, NULL::VARCHAR[] AS p_any_trace_ids"}
    select = [f"SELECT {common}, {lists.get(t, 'p_any_domain_names, p_any_trace_ids')} FROM {t}" for t in TABLES]
    db.sql(f"CREATE VIEW all_logs AS {' UNION ALL '.join(select)}")
    return db


def defaults(text, given):
    """The query's parameters: as given, or by its header."""
    values = {}
    for name, kind, default in re.findall(r"^-- param: (\w+) (\w+)(?: = ?([^:]*))?:", text, re.M):
        value = given.get(name, default.strip())
        values[name] = int(value) if kind == "integer" else value
    return values


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        make(folder)
        lake = f"{folder}/lake"
        size = sum(f.stat().st_size for f in pathlib.Path(lake).rglob("*.parquet"))
        print(f"{ROWS} HTTP requests and a tenth as many of each other kind, {size / 1e6:.0f} MB of Parquet; seconds, best of three\n")
        db = peer(lake)
        common = flarelake("--lake", lake, "query", "--format", "csv", "select clientip from cloudflare_httprequest group by 1 order by count(*) desc limit 1").split()[1]
        rare = flarelake("--lake", lake, "query", "--format", "csv", "select rayid from cloudflare_httprequest order by rayid limit 1").split()[1]
        start = best(lambda: flarelake("--lake", lake, "query", "SELECT 1"))
        print(f"{'':24}{'flarelake':>10}{'w/o start':>10}{'DuckDB':>10}{'ratio':>8}")
        for file in sorted((ROOT / "queries").glob("*.sql")):
            if file.stem in OURS_ALONE:
                continue
            text = file.read_text()
            values = defaults(text, {"since": SINCE, "value": common})
            given = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
            own = best(lambda: flarelake("--lake", lake, "query", "-f", file.stem, *given, "--format", "csv"))
            other = best(lambda: db.execute(text, values).to_arrow_table())
            print(f"{file.stem:24}{own:10.3f}{own - start:10.3f}{other:10.3f}{(own - start) / other:8.2f}")
        for name, value in (("search, a common address", common), ("search, one trace id", rare)):
            found = []
            own = best(lambda: found.append(json.loads(flarelake("--lake", lake, "search", value, "--since", "9000d", "--format", "ndjson"))))
            wanted = " OR ".join(f"list_contains({c}, $value)" for c in ("p_any_ip_addresses", "p_any_domain_names", "p_any_trace_ids"))
            sql = f"SELECT p_log_type, count(*), min(p_event_time), max(p_event_time) FROM all_logs WHERE {wanted} GROUP BY ALL"
            other = best(lambda: db.execute(sql, {"value": value}).to_arrow_table())
            share = found[0]["bytes_read"] / found[0]["bytes_total"]
            print(f"{name:24}{own:10.3f}{'':10}{other:10.3f}{own / other:8.2f}   {share:.2%} of the bytes read")


main()
