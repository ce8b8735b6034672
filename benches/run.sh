#!/bin/bash
# Measures the whole agent beside what disk, broker and codec can give, in one run, on real servers that it starts itself.
#
#   benches/run.sh                    all parts, seven rounds each (about three quarters of an hour)
#   benches/run.sh rounds=9 append    more rounds, and this part only; the parts: encode append read publish replay rest
#                                     load start crowd server default size growth hour
#
# Prints a table, and leaves results.json, results.svg and growth.svg in benches/out/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/servers.sh
out=${BENCH_OUT:-benches/out}
mkdir -p "$out"
cargo bench --quiet --profile release --bench whole -- "out=$out" "$@"
