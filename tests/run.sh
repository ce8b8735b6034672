#!/bin/bash
# All checks of the project: format, lints, dependencies, unit tests, integration tests against real servers.
#
#   tests/run.sh
#
# For a Debian 12 machine with Rust, as root or with sudo. The first run fetches the servers (tests/servers.sh)
# and builds cargo-deny, into a cache that later runs use. Ends with "N passed, N failed"; exit status 1 if any failed.
# FAULT_KILLS=100 makes the fault loop longer; tests/README.md names all such variables.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

DENY=0.20.2
CACHE=$(tests/servers.sh --where)
OUTPUT=$(mktemp)
trap 'rm -f "$OUTPUT"' EXIT
passed=0 failed=0 failures=()

say() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }

# step NAME COMMAND...: tests are counted one by one, a command that knows no tests counts as one.
step() {
  local name=$1 status=0 good bad
  shift
  say "$name"
  "$@" 2>&1 | tee "$OUTPUT" || status=1
  good=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p; s/^Ran \([0-9]*\) tests\? in .*/\1/p' "$OUTPUT" | paste -sd+ | bc_)
  bad=$(sed -n 's/^test result: .* passed; \([0-9]*\) failed; .*/\1/p' "$OUTPUT" | paste -sd+ | bc_)
  # unittest counts its failures into "Ran N tests".
  local unittest
  unittest=$(sed -n 's/^FAILED (\(.*\))$/\1/p' "$OUTPUT" | grep -o '[0-9]*' | paste -sd+ | bc_)
  good=$((good - unittest)) bad=$((bad + unittest))
  if [ $status = 0 ] && [ "$good" = 0 ]; then good=1; fi
  if [ $status != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  [ "$bad" = 0 ] || failures+=("$name: $bad")
  passed=$((passed + good)) failed=$((failed + bad))
}

bc_() { local sum; read -r sum; echo $((${sum:-0})); }

deny() {
  local deny=$CACHE/cargo/bin/cargo-deny
  command -v cargo-deny >/dev/null && deny=cargo-deny
  if ! command -v "$deny" >/dev/null; then
    # Unoptimized: built in half the time, and still done within seconds.
    echo "building cargo-deny $DENY, once (about a minute and a half)"
    cargo install --quiet --locked --debug --version "$DENY" --root "$CACHE/cargo" cargo-deny || return 1
  fi
  # Also the packages of other systems: `cargo metadata` reads all that Cargo.lock names.
  cargo fetch --quiet --locked && "$deny" --offline check bans licenses sources && CARGO_DENY=$deny tests/advisories.sh
}

say "servers"
tests/servers.sh || { echo "0 passed, 1 failed"; exit 1; }

step "format" cargo fmt --check
step "lints" cargo clippy --quiet --all-targets -- -D warnings
step "dependencies" deny
step "the checker's own tests" /usr/bin/python3 -B tests/checker_test.py
step "unit tests" cargo test --quiet --no-fail-fast --lib --bins
step "documentation" env RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --quiet --no-deps --lib --document-private-items
step "examples in the documentation" cargo test --quiet --doc
step "counted costs" cargo test --quiet --test counts
step "integration tests" cargo test --test it

say "done"
[ ${#failures[@]} = 0 ] || printf 'failed: %s\n' "${failures[@]}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
