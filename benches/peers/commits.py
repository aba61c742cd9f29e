"""How long opening, landing, asking and planning take as a lake's logs grow: `commits.py FLARELAKE [FOLDER]`.

Makes lakes of 10, 1,000 and 10,000 commits, a file each, over a year of partitions, and one of 20,000 files: one real landing, whose
log entries and files are repeated under other names. Times are of whole processes, on a local folder, before and after upkeep; the
first column is a process that does nothing. Rows repeat, so what is counted means nothing.
"""
import copy
import datetime
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid

program = sys.argv[1]
home = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="commits-"))
home.mkdir(parents=True, exist_ok=True)
TABLE, LEDGER = "cloudflare_httprequest", "ingested_objects"


def run(*arguments):
    began = time.monotonic()
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    return time.monotonic() - began


def entries(lake, table):
    return [json.loads(line) for line in (lake / table / "_delta_log" / f"{1:020}.json").read_text().splitlines()]


def write(lake, table, version, actions):
    text = "\n".join(json.dumps(action) for action in actions) + "\n"
    (lake / table / "_delta_log" / f"{version:020}.json").write_text(text)


def link(lake, table, old, new):
    (lake / table / new).parent.mkdir(exist_ok=True)
    os.link(lake / table / old, lake / table / new)


def make(commits, files):
    """A lake of so many commits that each add so many files."""
    lake = home / f"{commits}x{files}"
    shutil.rmtree(lake, ignore_errors=True)
    log = home / "one.log"
    log.write_text('{"EdgeStartTimestamp":1768478400000000000,"ClientIP":"192.0.2.1","ZoneID":1}\n')
    run("--lake", str(lake), "backfill", str(log))
    ledger, table = entries(lake, LEDGER), entries(lake, TABLE)
    info = next(action for action in ledger if "commitInfo" in action)
    own = next(action for action in ledger if "add" in action)
    add = next(action for action in table if "add" in action)
    for n in range(2, commits + 1):
        adds, listed = [], []
        for k in range(files):
            at = datetime.datetime(2025, 1, 1) + datetime.timedelta(minutes=525600 * ((n * files + k) / (commits * files + files)))
            day, micros = at.date().isoformat(), int((at - datetime.datetime(1970, 1, 1)).total_seconds()) * 1_000_000
            path = f"p_event_date={day}/{uuid.uuid4()}.parquet"
            link(lake, TABLE, add["add"]["path"], path)
            new = copy.deepcopy(add)
            new["add"].update(path=path, partitionValues={"p_event_date": day})
            new["add"]["tags"] = {"flarelake.min_event_time_us": str(micros), "flarelake.max_event_time_us": str(micros)}
            adds.append(new)
            file = copy.deepcopy(info["commitInfo"]["flarelake"]["adds"][TABLE][0])
            file.update(path=path, partition_values={"p_event_date": day}, times=[micros, micros])
            listed.append(file)
        landing, own_file = copy.deepcopy(info), copy.deepcopy(own)
        own_file["add"]["path"] = f"{uuid.uuid4()}.parquet"
        link(lake, LEDGER, own["add"]["path"], own_file["add"]["path"])
        landing["commitInfo"]["flarelake"].update(batch=str(uuid.uuid4()), objects=[secrets.token_hex(16)], adds={TABLE: listed})
        write(lake, LEDGER, n, [landing, own_file])
        txn = {"txn": {"appId": "flarelake", "version": n}}
        write(lake, TABLE, n, [next(a for a in table if "commitInfo" in a), *adds, txn])
    return lake


def measure(lake, number):
    log = home / f"{number}.log"
    log.write_text('{"EdgeStartTimestamp":1768478400000000000,"ClientIP":"192.0.2.%d","ZoneID":%d}\n' % (number % 256, number))
    lake = str(lake)
    return [
        run("schema", "list"),
        run("--lake", lake, "backfill", str(log)),
        run("--lake", lake, "query", f"select count(*) from {TABLE}"),
        run("--lake", lake, "query", f"select count(*) from {TABLE} where p_event_time between '2025-06-01' and '2025-06-02'"),
        run("--lake", lake, "compact", "--dry-run"),
    ]


print(f"{'commits':>8} {'files':>7} {'':>12} {'nothing':>8} {'land one':>9} {'count':>7} {'a day':>7} {'plan':>7}")
number = 0
for commits, files in [(10, 1), (1000, 1), (10000, 1), (20, 1000)]:
    lake = make(commits, files)
    for state in ["as landed", "kept up"]:
        if state == "kept up":
            upkeep = run("--lake", str(lake), "maintain", "--once")
        number += 1
        times = "".join(f"{seconds:8.2f}" for seconds in measure(lake, number))
        print(f"{commits:>8} {commits * files:>7} {state:>12} {times}" + (f"   (upkeep took {upkeep:.1f} s)" if state == "kept up" else ""), flush=True)
