#!/bin/bash
# A Debian package of the agent: the program, its unit (neither enabled nor started), its user, man pages, completions.
#
#   deploy/package.sh [BINARY [OPTION_OF_CARGO_DEB...]]
#
# BINARY was built already; left out: an optimized one is built. Pages and completions are printed by it. Needs cargo-deb
# (cargo install cargo-deb) and dpkg-dev. Prints the path of the package.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo-deb >/dev/null || { echo "cargo-deb is missing: cargo install cargo-deb" >&2; exit 1; }

target=${CARGO_TARGET_DIR:-target}
if [ -n "${1:-}" ]; then
  binary=$1
else
  cargo build --release --locked >&2
  binary=$target/release/postgres-agent
fi

# Cargo.toml names these files from here.
stage=target/package
rm -rf $stage
mkdir -p $stage/man $stage/completions
install --strip "$binary" $stage/postgres-agent
agent=$stage/postgres-agent

# page COMMAND...: its man page, and those of the commands that it names.
page() {
  local name text command
  name=$(IFS=-; echo "postgres-agent${*:+-$*}")
  text=$("$agent" man "$@")
  gzip -9n <<<"$text" >"$stage/man/$name.1.gz"
  for command in $(tr -d '\\' <<<"$text" | sed -n "s/^$name-\([a-z]*\)(1)\$/\1/p"); do page "$@" "$command"; done
}
page
"$agent" completions bash >$stage/completions/postgres-agent
"$agent" completions zsh >$stage/completions/_postgres-agent
"$agent" completions fish >$stage/completions/postgres-agent.fish
"$agent" config --defaults >$stage/defaults.toml
version=$("$agent" --version | cut -d' ' -f2)
gzip -9n <CHANGELOG.md >$stage/changelog.gz
gzip -9n >$stage/changelog.Debian.gz <<CHANGELOG
postgres-agent ($version-1) unstable; urgency=medium

  * As released: what changed stands in changelog.gz.

 -- The postgres-agent maintainers <postgres-agent@localhost>  $(date -uR -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")
CHANGELOG

cargo deb --no-build --no-strip --locked --output "$target/debian/" "${@:2}" >&2
ls "$target/debian/postgres-agent_$version"-*.deb
