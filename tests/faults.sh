#!/bin/bash
# The fault suite, a table of what came of each fault, and the figures that were measured.
#
#   tests/faults.sh              # all of it
#   tests/faults.sh power        # a part, by words of the tests' names
#
# Needs the servers (tests/servers.sh). What this machine does not let a test do is left out, and named below the table.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

REPORT=$(mktemp) OUTPUT=$(mktemp)
trap 'rm -f "$REPORT" "$OUTPUT"' EXIT
[ $# -gt 0 ] || set -- faults::
FAULT_REPORT=$REPORT cargo test --test it -- --nocapture "$@" >"$OUTPUT" 2>&1
status=$?
/usr/bin/python3 -B - "$REPORT" <<'TABLE'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
columns = ["row", "fault", "runs", "accepted", "delivered", "duplicates", "declared", "lost", "gaps", "longest stall", "RSS"]


def cells(row):
    stall, rss = row.get("longest_stall_ms"), row.get("rss_bytes")
    tail = ["" if stall is None else f"{stall} ms", "" if rss is None else f"{rss / 2**20:.0f} MiB"]
    return [str(row[column]) for column in columns[:9]] + tail


table = [columns] + [cells(row) for row in sorted(rows, key=lambda row: (row["row"], row["fault"]))]
widths = [max(len(line[at]) for line in table) for at in range(len(columns))]
for line in table:
    print("  ".join(cell.ljust(width) if at == 1 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))))
# Beyond the matrix of 56 lies a folder of a dead host.
print(f"{len({row['row'] for row in rows if row['row'] <= 56})} of 56 rows of the matrix, {len(rows)} faults")
TABLE
grep -h '^figure: ' "$OUTPUT" | sort
grep '^left out' "$OUTPUT" | sort -u
grep -E '^test .* FAILED$|^test result' "$OUTPUT"
[ $status = 0 ] || tail -60 "$OUTPUT"
exit $status
