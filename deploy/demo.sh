#!/bin/bash
# One minute with the agent: real PostgreSQL, real RabbitMQ, an outage, and the proof that nothing was lost.
#
#   deploy/demo.sh
#
# For a Debian 12 machine with Rust, as root or with sudo. Installs PostgreSQL and RabbitMQ from Debian if they are
# missing, builds the agent, and starts throw-away servers on free loopback ports below a temporary folder. Servers
# of the system are left alone. All that was started ends, and the folder goes, when the script ends; Ctrl-C is fine.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
chapter() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
good() { printf ' %s✓%s %s\n' "$green" "$plain" "$*"; }
fail() { printf ' %s✗ %s%s\n' "$red" "$*" "$plain" >&2; exit 1; }

# ---- what ends it all -------------------------------------------------------------------------------------------

FOLDER='' AGENT='' NODE='' EPMD='' POSTMASTER=''
SESSIONS=()

# end SIGNAL PID: ends a process of ours and waits for it, ten seconds at the most.
end() {
  local signal=$1 pid=$2 tries=0
  [ -n "$pid" ] || return 0
  kill -"$signal" "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { kill -KILL "$pid" 2>/dev/null || true; break; }
    sleep 0.1
  done
}

finish() {
  local status=$?
  trap '' INT TERM HUP PIPE
  set +e
  if [ -n "$FOLDER" ]; then
    case $status in 0 | 130 | 141) ;; *) tell_logs ;; esac
    chapter "cleaning up"
    for session in "${SESSIONS[@]}"; do end KILL "$session"; done
    end TERM "$AGENT"
    end QUIT "$POSTMASTER"
    end KILL "$NODE"
    end KILL "$EPMD"
    rm -rf "$FOLDER" && good "every process has ended, $FOLDER is gone"
  fi
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
# Its output was closed, as by `| head`.
trap 'exit 141' PIPE

tell_logs() {
  local log
  for log in agent.log postgres.log rabbitmq.log; do
    [ -s "$FOLDER/$log" ] && { printf '\n-- the end of %s\n' "$log"; tail -n 15 "$FOLDER/$log"; }
  done >&2
}

# ---- helpers ----------------------------------------------------------------------------------------------------

# Bash shall say nothing when the job just started ends.
quiet() { disown; }

# until_true SECONDS WHAT COMMAND...: waits with a bound, and says what it waited for in vain.
until_true() {
  local bound=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" 2>/dev/null; do
    [ $SECONDS -lt $bound ] || fail "waited in vain: $what"
    sleep 0.1
  done
}

# A port below those that the kernel gives to outgoing connections.
free_port() {
  local port
  while port=$((17000 + RANDOM % 15000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# as USER COMMAND...: becomes the command, as that user where we are root: PostgreSQL refuses root.
as() {
  local user=$1
  shift
  if [ "$(id -u)" = 0 ]; then exec setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@"; else exec "$@"; fi
}

uuid() { cat /proc/sys/kernel/random/uuid; }

# ---- install and build ------------------------------------------------------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_missing() {
  local missing=() services=() log held='' status=0
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || { missing+=(postgresql) services+=(postgresql); }
  [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || { missing+=(rabbitmq-server) services+=(rabbitmq-server); }
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  [ ${#missing[@]} = 0 ] && return
  chapter "installing from Debian: ${missing[*]}"
  command -v apt-get >/dev/null || fail "this script knows Debian only; elsewhere install ${missing[*]} by hand"
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "installing needs root or sudo"
  log=$(mktemp)
  # The packages' own services are neither started now nor at the next boot.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
    held=yes
  fi
  {
    as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -q -y --no-install-recommends "${missing[@]}"
  } >"$log" 2>&1 || status=$?
  [ -z "$held" ] || as_root rm -f /usr/sbin/policy-rc.d
  [ $status = 0 ] || { tail -n 20 "$log" >&2; rm -f "$log"; fail "apt-get failed"; }
  rm -f "$log"
  if command -v systemctl >/dev/null && [ ${#services[@]} -gt 0 ]; then
    as_root systemctl disable --quiet "${services[@]}" 2>/dev/null || true
  fi
  good "installed; their services stay off"
}

build() {
  command -v cargo >/dev/null || fail "cargo is missing: https://rustup.rs has it"
  chapter "building the agent"
  cargo build --release --locked
  agent_binary=${CARGO_TARGET_DIR:-target}/release/postgres-agent
  good "$("$agent_binary" --version)"
}

# ---- servers ----------------------------------------------------------------------------------------------------

make_folder() {
  FOLDER=$(mktemp -d /tmp/postgres-agent-demo.XXXXXX)
  chmod 755 "$FOLDER"
  mkdir "$FOLDER/pg" "$FOLDER/mq"
  chmod 700 "$FOLDER/pg"
  touch "$FOLDER/postgres.log" "$FOLDER/rabbitmq.log"
  if [ "$(id -u)" = 0 ]; then
    chown postgres: "$FOLDER/pg"
    chown rabbitmq: "$FOLDER/mq"
  fi
}

postgres_log() { tail -n 3 "$FOLDER/postgres.log"; }

start_postgres() {
  local bin
  bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)")
  pg_port=$(free_port)
  (as postgres "$bin/initdb" -D "$FOLDER/pg/data" -U postgres --auth=trust -E UTF8 --locale=C --no-sync) \
    >>"$FOLDER/postgres.log" 2>&1 || fail "initdb failed: $(postgres_log)"
  (as postgres "$bin/postgres" -D "$FOLDER/pg/data" -p "$pg_port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories="$FOLDER/pg" -c shared_preload_libraries=pg_stat_statements -c fsync=off) \
    >>"$FOLDER/postgres.log" 2>&1 </dev/null &
  POSTMASTER=$!
  quiet
  until_true 30 "PostgreSQL answers" sql "SELECT 1" >/dev/null
  sql "CREATE EXTENSION pg_stat_statements;
       CREATE ROLE agent LOGIN; GRANT pg_monitor TO agent;
       CREATE TABLE orders (id int PRIMARY KEY, state text NOT NULL);
       INSERT INTO orders SELECT i, 'new' FROM generate_series(1, 1000) i;" >/dev/null
  good "PostgreSQL $(sql 'SHOW server_version' | cut -d' ' -f1) on port $pg_port"
}

# psql in the environment that this demo says, not the user's.
run_psql() {
  env -u PGSERVICE -u PGOPTIONS -u PGPASSWORD PGAPPNAME="${1}" psql -X -q -A -t -v ON_ERROR_STOP=1 \
    -h 127.0.0.1 -p "$pg_port" -U postgres -d postgres "${@:2}"
}
sql() { run_psql demo -c "$1"; }

# What a queue is made of lies in the broker's own definitions file: exchange, durable queue, binding.
prepare_rabbitmq() {
  mq_port=$(free_port) dist_port=$(free_port) epmd_port=$(free_port)
  cat >"$FOLDER/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$mq_port
load_definitions = $FOLDER/definitions.json
disk_free_limit.absolute = 50MB
CONF
  # The password is guest: a salt and SHA-256.
  cat >"$FOLDER/definitions.json" <<'JSON'
{"vhosts": [{"name": "/"}],
 "users": [{"name": "guest", "password_hash": "ZGVtb+YFrSoOw7k/SbNL43PPtfdLG5n3Zv2ijRG1rxP6ub9T",
            "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["administrator"]}],
 "permissions": [{"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
 "exchanges": [{"name": "postgres-agent", "vhost": "/", "type": "topic", "durable": true,
                "auto_delete": false, "internal": false, "arguments": {}}],
 "queues": [{"name": "demo", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {}}],
 "bindings": [{"source": "postgres-agent", "vhost": "/", "destination": "demo", "destination_type": "queue",
               "routing_key": "#", "arguments": {}}]}
JSON
  : >"$FOLDER/rabbitmq-env.conf"
  echo '[].' >"$FOLDER/enabled_plugins"
  (as rabbitmq /usr/bin/epmd -address 127.0.0.1 -port "$epmd_port") >>"$FOLDER/rabbitmq.log" 2>&1 </dev/null &
  EPMD=$!
  quiet
}

start_rabbitmq() {
  # RUNNING_UNDER_SYSTEMD: the start script becomes the node, so that its process id is the node's.
  (
    cd "$FOLDER/mq"
    export HOME=$FOLDER/mq RABBITMQ_NODENAME=demo@localhost RABBITMQ_NODE_PORT=$mq_port \
      RABBITMQ_DIST_PORT=$dist_port ERL_EPMD_PORT=$epmd_port ERL_EPMD_ADDRESS=127.0.0.1 \
      RABBITMQ_MNESIA_BASE=$FOLDER/mq/mnesia RABBITMQ_LOG_BASE=$FOLDER/mq/log \
      RABBITMQ_CONFIG_FILE=$FOLDER/rabbitmq.conf RABBITMQ_CONF_ENV_FILE=$FOLDER/rabbitmq-env.conf \
      RABBITMQ_ENABLED_PLUGINS_FILE=$FOLDER/enabled_plugins RUNNING_UNDER_SYSTEMD=true \
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
    unset NOTIFY_SOCKET
    as rabbitmq /usr/lib/rabbitmq/bin/rabbitmq-server
  ) >>"$FOLDER/rabbitmq.log" 2>&1 </dev/null &
  NODE=$!
  quiet
}

# A node listens a while before it is ready: it is when it answers the first bytes of AMQP.
rabbitmq_answers() {
  local answer=
  exec 9<>"/dev/tcp/127.0.0.1/$mq_port" || return 1
  printf 'AMQP\x00\x00\x09\x01' >&9
  IFS= read -r -t 1 -n 1 -d '' answer <&9 || true
  exec 9>&-
  [ "$answer" = $'\x01' ]
}

# ---- workload ---------------------------------------------------------------------------------------------------

# session NUMBER NAME: a psql that reads what is written to its pipe, and stays.
session() {
  mkfifo "$FOLDER/session$1"
  run_psql "$2" >>"$FOLDER/workload.log" 2>&1 <"$FOLDER/session$1" &
  SESSIONS+=($!)
  quiet
}

start_workload() {
  holder=$(uuid) waiter=$(uuid) reader=$(uuid)
  session 1 "bitville-$holder"
  exec 5>"$FOLDER/session1"
  session 2 "bitville-$waiter"
  exec 6>"$FOLDER/session2"
  session 3 "bitville-$reader"
  exec 7>"$FOLDER/session3"
  echo "BEGIN; UPDATE orders SET state = 'paid' WHERE id = 1;" >&5
  until_true 10 "the first session holds its lock" holds_lock
  echo "UPDATE orders SET state = 'sent' WHERE id = 1;" >&6
  printf 'SELECT count(*), pg_sleep(0.2) FROM orders WHERE id %% 7 = 3 \\watch 0.1\n' >&7
  good "three sessions: one forgot to commit, one waits for it, one reads"
}

holds_lock() { [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")" = 1 ]; }

# ---- the agent --------------------------------------------------------------------------------------------------

start_agent() {
  page_port=$(free_port)
  # It holds a password: the agent says so where others may read it.
  install -m 600 /dev/null "$FOLDER/agent.toml"
  cat >"$FOLDER/agent.toml" <<TOML
agent.name = "demo"
postgres.url = "postgresql://agent@127.0.0.1:$pg_port/postgres"
amqp.url = "amqp://guest:guest@127.0.0.1:$mq_port/%2f"
spool.dir = "$FOLDER/spool"
spool.min_free = "0"
retry.max = "1s"
http.listen = "127.0.0.1:$page_port"

[collectors]
pg_activity.interval = "1s"
pg_statements.interval = "1s"
pg_locks.interval = "1s"
system_metrics.interval = "1s"
agent_status.interval = "1s"
TOML
  local variable
  for variable in $(compgen -e | grep -E '^(PG|AMQP_|POSTGRES_AGENT_)' || true); do unset "$variable"; done
  "$agent_binary" run --config "$FOLDER/agent.toml" >"$FOLDER/agent.log" 2>&1 &
  AGENT=$!
  quiet
  good "the agent looks each second (each 60 s where nothing else is configured)"
  good "its status page, while this runs: http://127.0.0.1:$page_port/"
}

# ask PATH: what the agent answers at its own port.
ask() {
  exec 8<>"/dev/tcp/127.0.0.1/$page_port" || return 1
  printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&8
  timeout 5 sed '1,/^\r$/d' <&8
  exec 8>&-
}

COLLECTORS=(agent_status system_metrics pg_activity pg_statements pg_locks)

tap() { "$agent_binary" tap --config "$FOLDER/agent.toml" "$@" 2>>"$FOLDER/tap.log"; }

# field NAME: the first value of that name in JSON on stdin.
field() { grep -o "\"$1\":\"\{0,1\}[^,\"}]*" | head -n 1 | sed 's/^[^:]*:"\{0,1\}//'; }

# wrap WIDTH TEXT: three lines of it at the most, broken behind a blank or a comma.
wrap() {
  local width=$1 text=$2 line cut
  for line in 1 2; do
    [ ${#text} -gt "$width" ] || break
    for ((cut = width; cut > width / 4; cut--)); do [[ ${text:cut-1:1} != [\ ,] ]] || break; done
    printf '       %s\n' "${text:0:cut}"
    text=${text:cut}
  done
  if [ ${#text} -gt "$width" ]; then text=${text:0:width-1}…; fi
  printf '       %s\n' "$text"
}

# What `tap` prints, as it arrives: of each collector the first event of one message.
show_messages() {
  local -A seen=()
  local line collector width=100 shown=''
  if [ -t 1 ]; then width=$(tput cols 2>/dev/null || echo 80); fi
  printf '%s   $ postgres-agent tap%s\n' "$dim" "$plain"
  while IFS= read -r line; do
    if [[ $line =~ ^([a-z_]+)\ \ seq\ ([0-9]+) ]]; then
      collector=${BASH_REMATCH[1]}
      [ ${#seen[@]} -lt ${#COLLECTORS[@]} ] || break
      shown=''
      # The first status of a run has little to tell yet.
      if [ -n "${seen[$collector]:-}" ] || [ "$collector ${BASH_REMATCH[2]}" = "agent_status 1" ]; then continue; fi
      seen[$collector]=yes shown=0
      printf '\n   %s%s%s\n' "$bold" "$line" "$plain"
    elif [ -n "$shown" ]; then
      shown=$((shown + 1))
      # Its second event begins, or enough of its rows were shown.
      if [ $shown -gt 4 ] || [[ $shown -gt 1 && $line =~ ^\ \ [0-9] ]]; then shown=''; continue; fi
      wrap $((width - 8)) "${line#"${line%%[! ]*}"}"
    fi
  done < <(tap --seconds 20)
  for collector in "${COLLECTORS[@]}"; do
    [ -n "${seen[$collector]:-}" ] || fail "no message of $collector within 20 s"
  done
}

show_findings() {
  tap --binding pg_activity --count 1 --seconds 10 --json >"$FOLDER/message"
  local id
  for id in "$holder" "$waiter"; do
    grep -q "\"correlation_id\":\"$id\"" "$FOLDER/message" || fail "correlation id $id is not in pg_activity"
  done
  good "correlation id $holder, given in application_name, came back in pg_activity"
  tap --binding pg_locks --count 1 --seconds 10 --json >"$FOLDER/message"
  [ "$(field blocking_correlation_id <"$FOLDER/message")" = "$holder" ] || fail "pg_locks does not tell who blocks"
  good "who blocks whom, from pg_locks:"
  say "pid $(field blocked_pid <"$FOLDER/message") (bitville-$waiter)"
  say "  has waited $(field wait_ms <"$FOLDER/message" | cut -d. -f1) ms for a $(field locktype <"$FOLDER/message") lock of"
  say "pid $(field blocking_pid <"$FOLDER/message") (bitville-$holder), $(field blocking_state <"$FOLDER/message")"
}

# ---- the outage -------------------------------------------------------------------------------------------------

spool_bytes() {
  local sizes
  sizes=$(find "$FOLDER/spool" -name '*.seg' -printf '%s+' 2>/dev/null || true)
  echo $((${sizes}0))
}

outage() {
  local second bytes
  end TERM "$NODE"
  NODE=
  good "the broker is down; the agent goes on"
  for second in 1 2 3 4 5 6; do
    sleep 1
    bytes=$(spool_bytes)
    printf '   after %d s the spool holds %4d KiB  %s\n' "$second" $((bytes / 1024)) \
      "$(printf '%*s' $((bytes / 4096 + 1)) '' | tr ' ' '#' | cut -c 1-60)"
  done
  spooled=$bytes
  say "what it says of itself, at /readyz:"
  wrap 96 "$(ask /readyz)"
  kill -0 "$AGENT" 2>/dev/null || fail "the agent has ended"
  start_rabbitmq
  say "starting the broker again …"
  until_true 60 "RabbitMQ answers" rabbitmq_answers
  good "the broker is back"
  until_true 30 "the spool is delivered" spool_is_drained
  good "what waited is delivered, the spool is down to $(($(spool_bytes) / 1024)) KiB"
}

spool_is_drained() { [ "$(spool_bytes)" -lt $((spooled / 4)) ]; }

audit() {
  end TERM "$AGENT"
  AGENT=
  local status=0
  printf '%s   $ postgres-agent tap --audit --queue demo%s\n' "$dim" "$plain"
  tap --audit --queue demo >"$FOLDER/audit" || status=$?
  sed -n '/^agent /,$p' "$FOLDER/audit" | sed 's/^/   /'
  [ $status = 0 ] || fail "the audit found something missing"
  good "every message that the agent numbered has arrived"
}

# ---- the story --------------------------------------------------------------------------------------------------

install_missing
build
begun=$SECONDS
make_folder
chapter "two servers, only for this demo, in $FOLDER"
prepare_rabbitmq
start_rabbitmq
start_postgres
start_workload
until_true 90 "RabbitMQ answers" rabbitmq_answers
good "RabbitMQ on port $mq_port"
start_agent

chapter "what arrives at the broker, decoded"
show_messages
printf '\n'
show_findings

chapter "the broker goes away"
outage

chapter "the proof, from the messages alone"
audit
say "${dim}$((SECONDS - begun)) s beside installing and building. On a database of your own, without broker or spool:${plain}"
say "${dim}$agent_binary collect --format table  (reads PGHOST, PGUSER, … like psql; changes nothing)${plain}"
