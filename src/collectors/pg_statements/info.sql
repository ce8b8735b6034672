-- What holds for all entries, from the extension's function, or from no_info.sql where it has none yet.
SELECT i.dealloc, i.stats_reset,
       (SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'pg_stat_statements') AS version,
       pg_catalog.current_setting('track_io_timing')::boolean AS io_timing,
       coalesce(pg_catalog.current_setting('pg_stat_statements.track_planning', true)::boolean, false) AS planning
FROM {info} i
