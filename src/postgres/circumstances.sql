-- What the role may, and how the server is set: whatever decides how much a look can bring.
SELECT
    r.rolsuper AS superuser,
    r.rolconnlimit::pg_catalog.int8 AS role_limit,
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usename = r.rolname) AS role_connections,
    (SELECT pg_catalog.sum(d.numbackends)::pg_catalog.int8 FROM pg_catalog.pg_stat_database d) AS connections,
    pg_catalog.current_setting('max_connections')::pg_catalog.int8
        - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8
        - coalesce(pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int8, 0) AS connections_max,
    pg_catalog.current_setting('track_activities') = 'on' AS track_activities,
    pg_catalog.current_setting('track_io_timing') = 'on' AS track_io_timing,
    (SELECT s.setting::pg_catalog.int8 FROM pg_catalog.pg_settings s WHERE s.name = 'track_activity_query_size') AS query_size,
    pg_catalog.current_setting('compute_query_id', true) AS compute_query_id,
    pg_catalog.current_setting('pg_stat_statements.track', true) AS statements_track,
    pg_catalog.current_setting('pg_stat_statements.max', true)::pg_catalog.int8 AS statements_max,
    e.extversion AS extension_version,
    (SELECT a.default_version::pg_catalog.text FROM pg_catalog.pg_available_extensions() a WHERE a.name = 'pg_stat_statements')
        AS extension_available,
    pg_catalog.quote_ident(n.nspname) AS extension_schema,
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END AS replay_paused,
    t.ssl AS tls,
    t.version AS tls_version,
    t.cipher AS tls_cipher,
    pg_catalog.host(pg_catalog.inet_server_addr()) AS server_address,
    pg_catalog.host(pg_catalog.inet_client_addr()) AS client_address,
    pg_catalog.current_setting('port')::pg_catalog.int8 AS port,
    (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'unix_socket_directories') AS socket_directories
FROM pg_catalog.pg_roles r
LEFT JOIN pg_catalog.pg_extension e ON e.extname = 'pg_stat_statements'
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
LEFT JOIN pg_catalog.pg_stat_ssl t ON t.pid = pg_catalog.pg_backend_pid()
WHERE r.rolname = current_user
