#!/bin/bash
# Measures the whole agent beside what disk, broker and codec can give, in one run, on real servers that it starts itself.
#
#   benches/run.sh                    all parts, seven rounds each or more (about three quarters of an hour)
#   benches/run.sh rounds=9 append    more rounds, and this part only; the parts: encode append read publish replay rest
#                                     load start crowd server default size growth hour
#   benches/run.sh order              writes build/running.ld anew: the functions that are to lie side by side (x86-64)
#
# Prints a table, and leaves results.json, results.svg and growth.svg in benches/out/.
set -euo pipefail
cd "$(dirname "$0")/.."
# collectd, to compare with, and what its plugins need.
bash tests/servers.sh collectd-core libpq5 librabbitmq4 libyajl2
out=${BENCH_OUT:-benches/out}
mkdir -p "$out"
out=$(realpath "$out")
# What users get is measured: beside the benches cargo builds the agent with what the tests switch on in its packages.
cargo build --quiet --release
cp "${CARGO_TARGET_DIR:-target}/release/postgres-agent" "$out/postgres-agent"
export POSTGRES_AGENT_BINARY="$out/postgres-agent"
cargo bench --quiet --profile release --bench whole -- "out=$out" "$@"
