#!/bin/bash
# What is known against the crates in Cargo.lock, from the copy of RustSec's database that lies beside this script, for
# where the database itself cannot be fetched. Where it can: cargo deny check advisories
#
#   tests/advisories.sh               check, and say of which day the copy is
#   tests/advisories.sh --renew DIR   make the copy anew from a clone of https://github.com/RustSec/advisory-db
#
# The copy is whole, and holds of each advisory what cargo-deny decides by: its id, crate, versions and title.
set -euo pipefail
cd "$(dirname "$0")/.."
COPY=$PWD/tests/advisories.tar.xz
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

if [ "${1:-}" = --renew ]; then
  git -C "$2" archive HEAD crates | tar x -C "$WORK"
  /usr/bin/python3 - "$WORK" <<'PYTHON'
import pathlib, re, sys
for path in pathlib.Path(sys.argv[1]).glob("crates/*/*.md"):
    text = path.read_text()
    head = re.search(r"^```toml\n.*?^```$", text, re.DOTALL | re.MULTILINE)
    title = re.search(r"^# .+$", text, re.MULTILINE)
    path.write_text(f"{head[0]}\n\n{title[0]}\n\nhttps://rustsec.org/advisories/{path.stem}\n")
PYTHON
  git -C "$2" log -1 --format=%cs >"$WORK/date"
  tar cJf "$COPY" --sort=name --owner=0 --group=0 --mtime="$(cat "$WORK/date")" -C "$WORK" date crates
  echo "advisories: $(find "$WORK" -name '*.md' | wc -l) of $(cat "$WORK/date")"
  exit
fi

# cargo-deny reads a database out of a git repository only, at an address with a domain: for git this one lies here.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_COUNT=1
export GIT_CONFIG_KEY_0=url.file://$WORK/db.insteadOf GIT_CONFIG_VALUE_0=https://github.com/RustSec/advisory-db
mkdir "$WORK/db"
tar xJf "$COPY" -C "$WORK/db"
git -C "$WORK/db" init --quiet --initial-branch=main
git -C "$WORK/db" add --all
git -C "$WORK/db" -c user.name=copy -c user.email=copy@localhost commit --quiet --message="$(cat "$WORK/db/date")"
sed "s|^\[advisories\]\$|&\ndb-path = \"$WORK/read\"\ngit-fetch-with-cli = true|" deny.toml >"$WORK/deny.toml"
echo "advisories: $(find "$WORK/db" -name '*.md' | wc -l) of $(cat "$WORK/db/date")"
"${CARGO_DENY:-cargo-deny}" --locked --config "$WORK/deny.toml" check advisories
