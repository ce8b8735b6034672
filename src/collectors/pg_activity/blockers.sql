-- Who is in the way of each of $1, as the server says.
SELECT w.pid, pg_catalog.pg_blocking_pids(w.pid) AS blockers FROM pg_catalog.unnest($1) w(pid)
