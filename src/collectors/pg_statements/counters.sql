-- Every entry without its text: with it, the server would read its whole file of texts.
-- The order of the columns is that of Entry::read.
SELECT a.userid, a.dbid, a.queryid, a.toplevel, a.stats_since, a.calls, a.total_exec_time, a.rows,
       a.shared_blks_hit, a.shared_blks_read, a.shared_blks_written, a.local_blks_hit, a.local_blks_read,
       a.local_blks_written, a.temp_blks_read, a.temp_blks_written,
       -- Told apart since 1.11.
       coalesce(a.blk_read_time, a.shared_blk_read_time + a.local_blk_read_time) AS blk_read_time,
       coalesce(a.blk_write_time, a.shared_blk_write_time + a.local_blk_write_time) AS blk_write_time,
       a.plans, a.total_plan_time, a.wal_records, a.wal_fpi, a.wal_bytes,
       a.mean_exec_time, a.min_exec_time, a.max_exec_time, a.stddev_exec_time,
       -- Another one whenever any of these counters is another: each run counts, and so does each planning; a reset of
       -- the shortest and longest times empties the latter.
       pg_catalog.hashfloat8extended(a.total_exec_time, pg_catalog.hashfloat8extended(coalesce(a.max_exec_time, 0),
           pg_catalog.hashint8extended(a.calls, pg_catalog.hashint8extended(coalesce(a.plans, 0),
           pg_catalog.hashint8extended(a.queryid, (a.dbid::bigint << 32) | a.userid::bigint))))) AS mark
-- A column that this version of the extension lacks is found one level up, where it is NULL.
FROM (SELECT NULL::boolean AS toplevel, NULL::timestamp with time zone AS stats_since, NULL::bigint AS rows,
             NULL::bigint AS shared_blks_hit, NULL::bigint AS shared_blks_read, NULL::bigint AS shared_blks_written,
             NULL::bigint AS local_blks_hit, NULL::bigint AS local_blks_read, NULL::bigint AS local_blks_written,
             NULL::bigint AS temp_blks_read, NULL::bigint AS temp_blks_written,
             NULL::double precision AS blk_read_time, NULL::double precision AS blk_write_time,
             NULL::double precision AS shared_blk_read_time, NULL::double precision AS shared_blk_write_time,
             NULL::double precision AS local_blk_read_time, NULL::double precision AS local_blk_write_time,
             NULL::bigint AS plans, NULL::double precision AS total_plan_time,
             NULL::bigint AS wal_records, NULL::bigint AS wal_fpi, NULL::numeric AS wal_bytes,
             NULL::double precision AS mean_exec_time, NULL::double precision AS min_exec_time,
             NULL::double precision AS max_exec_time, NULL::double precision AS stddev_exec_time) absent
CROSS JOIN LATERAL (
    SELECT userid, dbid, queryid, toplevel, stats_since, calls, total_exec_time, rows, shared_blks_hit,
           shared_blks_read, shared_blks_written, local_blks_hit, local_blks_read, local_blks_written, temp_blks_read,
           temp_blks_written, blk_read_time, blk_write_time, shared_blk_read_time, shared_blk_write_time,
           local_blk_read_time, local_blk_write_time, plans, total_plan_time, wal_records, wal_fpi, wal_bytes,
           mean_exec_time, min_exec_time, max_exec_time, stddev_exec_time
    FROM {schema}.pg_stat_statements(false)
) a
