SELECT
    pg_catalog.clock_timestamp() AS clock,
    (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system_identifier,
    pg_catalog.current_setting('server_version_num')::int4 AS version_num,
    pg_catalog.current_database() AS database,
    r.in_recovery,
    -- pg_control_checkpoint() tells the old timeline for minutes after a promotion; WAL's own name does not.
    CASE WHEN r.in_recovery THEN NULL
         ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
    END AS wal_timeline,
    CASE WHEN r.in_recovery THEN
        (SELECT GREATEST(v.min_recovery_end_timeline, c.timeline_id)
         FROM pg_catalog.pg_control_recovery() v, pg_catalog.pg_control_checkpoint() c)
    END AS replayed_timeline,
    pg_catalog.pg_postmaster_start_time() AS postmaster_start,
    -- Shown only to roles that may read all statistics. It costs a look at all sessions.
    CASE WHEN $1 THEN
        (SELECT max(a.backend_start) FROM pg_catalog.pg_stat_get_activity(NULL) a
         WHERE a.backend_type = 'checkpointer')
    END AS checkpointer_start,
    (SELECT b.stats_reset FROM pg_catalog.pg_stat_bgwriter b) AS stats_reset,
    r.role AS role,
    pg_catalog.pg_has_role(r.role, 'pg_read_all_stats', 'USAGE') AS sees_all
FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery, current_user AS role) r
