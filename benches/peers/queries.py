"""The saved queries and searches, beside DuckDB and chDB on the same Parquet files: prints a table.

    cargo build --release
    pip install duckdb chdb pyarrow
    python benches/peers/queries.py [ROWS] [FOLDER]

ROWS HTTP requests (2 million) and a tenth as many of each other kind, over 30 days. FOLDER keeps the lake for another run.
Everything runs on the same cores, one after the other, best of three. flarelake is timed as a whole process, less what
`SELECT 1` takes (starting); the others inside one process that has started and knows the files.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import warnings

import chdb.session
import duckdb

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "flarelake"
SINCE = "2020-01-01"
# Questions about the lake itself: other engines don't have its tables of files and objects.
OURS_ALONE = {"files_and_sizes", "freshness", "rejects_by_reason"}
TABLES = {"cloudflare_httprequest": "Cloudflare.HttpRequest", "cloudflare_firewall": "Cloudflare.Firewall", "cloudflare_spectrum": "Cloudflare.Spectrum"}
LISTS = ("p_any_ip_addresses", "p_any_domain_names", "p_any_trace_ids")
# What DuckDB calls something else.
DUCKDB = """
CREATE MACRO to_unixtime(t) AS epoch(t);
CREATE MACRO approx_percentile_cont(x, p) AS approx_quantile(x, p);
"""
# What ClickHouse calls something else.
CHDB = [
    (r"percentile_cont\(([\d.]+)\) WITHIN GROUP \(ORDER BY (\w+)\)", r"quantileExactInclusive(\1)(\2)"),
    (r"to_unixtime\((\w+)\)", r"(toUnixTimestamp64Micro(\1) / 1e6)"),
    (r"array_has\(", "has("),
    (r"BotScore / 10 \* 10", "intDiv(BotScore, 10) * 10"),
]


def best(work):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def flarelake(*arguments):
    # The others take most of the machine's memory by default.
    environment = os.environ | {"FLARELAKE_MEMORY": "8GiB"}
    return subprocess.run([PROGRAM, *arguments], check=True, capture_output=True, text=True, env=environment).stdout


def make(folder, rows):
    """Ten parts, one after the other in time, as logs come; and as they land, a day's rows are in a few files."""
    for table, log_type in TABLES.items():
        logs, own = folder / "logs" / table, rows if table.endswith("httprequest") else rows // 10
        for part in range(10):
            start = f"2026-01-{1 + part * 3:02}T00:00:00Z"
            flarelake("generate", "--log-type", log_type, "--rows", str(own // 10), "--files", "12", "--gzip", "--seed", str(part), "--start", start, "--span", "3d", "--odd", "0", "--out", str(logs))
            flarelake("--lake", str(folder / "lake"), "backfill", str(logs))
            # The logs take much more room than the lake.
            subprocess.run(["rm", "-r", str(logs)], check=True)


def all_logs(no_lists):
    common = "p_event_time, p_parse_time, p_log_type, p_row_id, p_any_ip_addresses"
    selects = [f"SELECT {common}, {no_lists if t.endswith('spectrum') else 'p_any_domain_names, p_any_trace_ids'} FROM {t}" for t in TABLES]
    return f"CREATE VIEW all_logs AS {' UNION ALL '.join(selects)}"


def duck(lake):
    db = duckdb.connect()
    db.sql(DUCKDB)
    for table in TABLES:
        db.sql(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{lake}/{table}/p_event_date=*/*.parquet', hive_partitioning = true)")
    db.sql(all_logs("NULL::VARCHAR[] AS p_any_domain_names, NULL::VARCHAR[] AS p_any_trace_ids"))
    return lambda sql, values: db.execute(sql, values).to_arrow_table()


def chdb_session(lake):
    db = chdb.session.Session()
    db.query("CREATE DATABASE lake; USE lake")
    for table in TABLES:
        db.query(f"CREATE VIEW {table} AS SELECT * FROM file('{lake}/{table}/p_event_date=*/*.parquet', Parquet)")
    empty = "CAST([], 'Array(Nullable(String))')"
    db.query(all_logs(f"{empty} AS p_any_domain_names, {empty} AS p_any_trace_ids"))

    def ask(sql, values):
        for pattern, other in CHDB:
            sql = re.sub(pattern, other, sql)
        for name, value in values.items():
            text = f"toDateTime64('{value}', 6, 'UTC')" if name == "since" else str(value) if isinstance(value, int) else f"'{value}'"
            sql = re.sub(rf"\${name}\b", text, sql)
        return db.query(sql, "Arrow")

    return ask


def defaults(text, given):
    """The query's parameters: as given, or by its header."""
    values = {}
    for name, kind, default in re.findall(r"^-- param: (\w+) (\w+)(?: = ?([^:]*))?:", text, re.M):
        value = given.get(name, default.strip())
        values[name] = int(value) if kind == "integer" else value
    return values


def line(name, own, others, more=""):
    times = [f"{t:10.3f}" if t else f"{'fails':>10}" for t in others]
    fastest = min(t for t in others if t)
    print(f"{name:26}{own:10.3f}{''.join(times)}{own / fastest:8.2f}{more}", flush=True)


def attempt(work):
    try:
        return best(work)
    except Exception as error:
        print(f"  ({str(error).splitlines()[0][:150]})")
        return None


def queries(lake, peers, common):
    start = best(lambda: flarelake("--lake", lake, "query", "SELECT 1"))
    print(f"starting takes flarelake {start:.3f}\n\n{'':26}{'flarelake':>10}{'DuckDB':>10}{'chDB':>10}{'ratio':>8}")
    for file in sorted((ROOT / "queries").glob("*.sql")):
        if file.stem in OURS_ALONE:
            continue
        text = file.read_text()
        values = defaults(text, {"since": SINCE, "value": common})
        given = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
        own = best(lambda: flarelake("--lake", lake, "query", "-f", file.stem, *given, "--format", "csv"))
        line(file.stem, own - start, [attempt(lambda: peer(text, values)) for peer in peers])


def searches(lake, peers, common, rare, network, domain):
    start = best(lambda: flarelake("--lake", lake, "query", "SELECT 1"))
    ends = f"concat(' ', array_to_string({{}}, ' '), ' ')"
    for name, value, condition in (
        ("search, a common address", common, "has_any"), ("search, one trace id", rare, "has_any"),
        ("search, a rare network", f"{network}.0/24", f"{ends.format('p_any_ip_addresses')} LIKE '% {network}.%'"),
        ("search, a rare domain", f"*.{domain}", f"{ends.format('p_any_domain_names')} LIKE '%{domain} %'"),
    ):
        found = []
        own = best(lambda: found.append(json.loads(flarelake("--lake", lake, "search", value, "--since", "9000d", "--format", "ndjson"))))
        if condition == "has_any":
            condition = " OR ".join(f"array_has({column}, '{value}')" for column in LISTS)
        sql = f"SELECT p_log_type, count(*), min(p_event_time), max(p_event_time) FROM all_logs WHERE {condition} GROUP BY p_log_type"
        others = [attempt(lambda: peer(sql.replace("array_to_string", "arrayStringConcat") if n else sql, {})) for n, peer in enumerate(peers)]
        share, rows = found[0]["bytes_read"] / found[0]["bytes_total"], sum(t["rows"] for t in found[0]["tables"])
        line(name, own - start, others, f"   {rows} rows, {share:.2%} of the bytes read")


def main():
    warnings.simplefilter("ignore")
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        if not (folder / "lake").exists():
            make(folder, rows)
        lake = str(folder / "lake")
        files = list(pathlib.Path(lake).rglob("*.parquet"))
        print(f"{rows} HTTP requests and a tenth as many of each other kind, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB of Parquet in {len(files)} files; seconds, best of three")
        peers = [duck(lake), chdb_session(lake)]
        first = lambda sql: flarelake("--lake", lake, "query", "--format", "csv", sql).split()[1]
        common = first("select clientip from cloudflare_httprequest group by 1 order by count(*) desc limit 1")
        rare = first("select rayid from cloudflare_httprequest order by rayid limit 1")
        address = first("select clientip from cloudflare_httprequest where clientip like '%.%' group by 1 order by count(*), 1 limit 1")
        domain = first("select clientrequesthost from cloudflare_httprequest group by 1 order by count(*), 1 limit 1")
        queries(lake, peers, common)
        searches(lake, peers, common, rare, address.rsplit(".", 1)[0], domain)


main()
