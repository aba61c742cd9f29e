"""Opens a lake's tables with the readers people use, and compares types and values with what the documents say."""

import datetime as dt
import json
import os
import pathlib
import sys

import chdb
import duckdb
import polars
from deltalake import DeltaTable

lake = pathlib.Path(sys.argv[1])
UTC = dt.timezone.utc


def moment(text):
    return dt.datetime.fromisoformat(text).astimezone(UTC)


def equal(what, found, expected):
    assert found == expected, f"{what}: {found!r} is not {expected!r}"


http = DeltaTable(str(lake / "cloudflare_httprequest"))
equal("protocol", (http.protocol().min_reader_version, http.protocol().min_writer_version), (1, 2))
equal("partition columns", http.metadata().partition_columns, ["p_event_date"])
types = {field["name"]: field["type"] for field in json.loads(http.schema().to_json())["fields"]}
for name, kind in {
    "EdgeResponseStatus": "short", "ClientSrcPort": "integer", "ZoneID": "long", "EdgeResponseCompressionRatio": "float", "CacheTieredFill": "boolean",
    "ClientIP": "string", "EdgeStartTimestamp": "timestamp", "p_event_time": "timestamp", "p_event_date": "date",
}.items():
    equal(f"Delta type of {name}", types[name], kind)
equal("Delta list", types["p_any_trace_ids"], {"type": "array", "elementType": "string", "containsNull": True})
equal("Delta map", types["p_rescued_data"], {"type": "map", "keyType": "string", "valueType": "string", "valueContainsNull": True})
required = [field["name"] for field in json.loads(http.schema().to_json())["fields"] if not field["nullable"]]
equal("required", required, ["EdgeStartTimestamp", "p_event_time", "p_parse_time", "p_log_type", "p_row_id"])

EXPECTED = {
    "EdgeStartTimestamp": moment("2022-11-03T22:02:07.424123+00:00"), "EdgeEndTimestamp": moment("2022-11-03T22:02:08.000001+00:00"),
    "EdgeResponseStatus": 522, "ClientSrcPort": 58960, "ZoneID": 9007199254740993, "EdgeResponseCompressionRatio": 2.5, "CacheTieredFill": True,
    "ClientIP": "2001:DB8::0:1", "FirewallMatchesActions": ["allow", "é"], "FirewallMatchesRuleIDs": [], "FirewallMatchesSources": None,
    "p_log_type": "Cloudflare.HttpRequest", "p_any_ip_addresses": ["2001:db8::1"], "p_any_domain_names": ["shop.example.com"],
    "p_any_trace_ids": ["76486474681b7fff"], "p_event_date": dt.date(2022, 11, 3), "BotScore": None,
}
RESCUED = {"JA4": "t13", "BotDetectionIDs": "[1]"}


def utc(value):
    return value.astimezone(UTC) if isinstance(value, dt.datetime) else value


def check(reader, row, rescued):
    for name, value in EXPECTED.items():
        equal(f"{reader}: {name}", utc(row[name]), value)
    equal(f"{reader}: p_rescued_data", dict(rescued), RESCUED)


arrow = http.to_pyarrow_table().sort_by("p_event_time")
equal("rows", arrow.num_rows, 2)
for name, kind in {"EdgeResponseStatus": "int16", "ClientSrcPort": "int32", "ZoneID": "int64", "EdgeResponseCompressionRatio": "float"}.items():
    equal(f"Arrow type of {name}", str(arrow.schema.field(name).type), kind)
row = arrow.to_pylist()[0]
check("deltalake and PyArrow", row, row["p_rescued_data"])
equal("the second row's status", arrow.to_pylist()[1]["EdgeResponseStatus"], -1)

# Files carry no partition column: readers take it from the path, as Hive readers do.
files = f"read_parquet('{lake}/cloudflare_httprequest/p_event_date=*/*.parquet', hive_partitioning = true)"
duck = duckdb.connect()
duck.execute("SET TimeZone = 'UTC'")
described = {r[0]: r[1] for r in duck.execute(f"DESCRIBE SELECT * FROM {files}").fetchall()}
for name, kind in {
    "EdgeResponseStatus": "SMALLINT", "ClientSrcPort": "INTEGER", "ZoneID": "BIGINT", "EdgeResponseCompressionRatio": "FLOAT", "CacheTieredFill": "BOOLEAN",
    "EdgeStartTimestamp": "TIMESTAMP WITH TIME ZONE", "p_any_trace_ids": "VARCHAR[]", "p_rescued_data": "MAP(VARCHAR, VARCHAR)", "p_event_date": "DATE",
}.items():
    equal(f"DuckDB type of {name}", described[name], kind)
result = duck.execute(f"SELECT * REPLACE (epoch_us(EdgeStartTimestamp) AS EdgeStartTimestamp, epoch_us(EdgeEndTimestamp) AS EdgeEndTimestamp, epoch_us(p_event_time) AS p_event_time, epoch_us(p_parse_time) AS p_parse_time) FROM {files} ORDER BY p_event_time LIMIT 1")
row = dict(zip([c[0] for c in result.description], result.fetchone()))
for name in ["EdgeStartTimestamp", "EdgeEndTimestamp"]:
    row[name] = dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(microseconds=row[name])
check("DuckDB", row, row["p_rescued_data"])

frame = polars.read_delta(str(lake / "cloudflare_httprequest")).sort("p_event_time")
equal("Polars type", frame.schema["EdgeResponseStatus"], polars.Int16)
row = frame.row(0, named=True)
rescued = row["p_rescued_data"]
check("Polars", row, rescued if isinstance(rescued, dict) else {entry["key"]: entry["value"] for entry in rescued})

# ClickHouse reads the log, of tables in the folder it was started in. It has no null lists: an absent one is empty.
os.chdir(lake)
table = f"deltaLakeLocal('{lake}/cloudflare_httprequest')"
types = ", ".join(f"toTypeName({name}) AS {name}" for name in ["EdgeResponseStatus", "ClientSrcPort", "ZoneID", "EdgeResponseCompressionRatio", "p_event_time", "p_any_trace_ids", "p_rescued_data", "p_event_date"])
described = json.loads(str(chdb.query(f"SELECT {types} FROM {table} LIMIT 1", "JSONEachRow")))
for name, kind in {
    "EdgeResponseStatus": "Nullable(Int16)", "ClientSrcPort": "Nullable(Int32)", "ZoneID": "Nullable(Int64)", "EdgeResponseCompressionRatio": "Nullable(Float32)",
    "p_event_time": "DateTime64(6)", "p_any_trace_ids": "Array(Nullable(String))", "p_rescued_data": "Map(String, Nullable(String))",
}.items():
    equal(f"chDB type of {name}", described[name], kind)
epochs = ", ".join(f"toUnixTimestamp64Micro({name}) AS {name}" for name in ["EdgeStartTimestamp", "EdgeEndTimestamp"])
row = json.loads(str(chdb.query(f"SELECT * REPLACE ({epochs}) FROM {table} ORDER BY p_event_time LIMIT 1 SETTINGS output_format_json_quote_64bit_integers = 0", "JSONEachRow")))
for name in ["EdgeStartTimestamp", "EdgeEndTimestamp"]:
    row[name] = dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(microseconds=row[name])
row["p_event_date"] = dt.date.fromisoformat(row["p_event_date"])
equal("chDB: an absent list", row["FirewallMatchesSources"], [])
row["FirewallMatchesSources"] = None
check("chDB", row, row["p_rescued_data"])

firewall = DeltaTable(str(lake / "cloudflare_firewall")).to_pyarrow_table().to_pylist()
equal("Metadata", dict(firewall[0]["Metadata"]), {"group": "g", "score": "42", "none": None})
spectrum = DeltaTable(str(lake / "cloudflare_spectrum")).to_pyarrow_table().to_pylist()
equal("ClientASN", spectrum[0]["ClientASN"], 200391)
equal("DisconnectTimestamp", utc(spectrum[0]["DisconnectTimestamp"]), moment("1970-01-01T00:00:00+00:00"))
assert "p_any_domain_names" not in spectrum[0]
rejects = DeltaTable(str(lake / "classification_failures")).to_pyarrow_table().to_pylist()
equal("reject", [(r["reason"], r["payload"], r["record_length"]) for r in rejects], [("invalid_json", b"not json", 8)])
ledger = DeltaTable(str(lake / "ingested_objects")).to_pyarrow_table().to_pylist()
equal("ledger", [(dict(r["rows"]), r["rejects"]) for r in ledger], [({"cloudflare_httprequest": 2, "cloudflare_firewall": 1, "cloudflare_spectrum": 1}, 1)])

# The log's bounds hold every value: the least is cut down to the millisecond, the greatest is not.
for action in (json.loads(line) for line in (lake / "cloudflare_httprequest/_delta_log/00000000000000000001.json").read_text().splitlines()):
    if "add" in action and "2022-11-03" in action["add"]["path"]:
        stats = json.loads(action["add"]["stats"])
        equal("least", stats["minValues"]["p_event_time"], "2022-11-03T22:02:07.424Z")
        equal("greatest", stats["maxValues"]["p_event_time"], "2022-11-03T22:02:07.425Z")
        equal("rows in a file", stats["numRecords"], 1)
        break
else:
    raise AssertionError("the log names no file of that day")
print("all readers agree")
