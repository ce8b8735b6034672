-- The sessions of some pids and their leaders, and what is prepared.
WITH everybody AS MATERIALIZED (
    SELECT pid, datname, usename, application_name, client_addr, state, state_change, xact_start, query_start, query,
           backend_type, leader_pid, NULL::text AS gid
    FROM pg_catalog.pg_stat_activity
)
SELECT * FROM everybody
WHERE pid = ANY ($1) OR pid IN (SELECT leader_pid FROM everybody WHERE pid = ANY ($1))
UNION ALL
SELECT 0, database, owner, NULL, NULL, NULL, prepared, NULL, NULL, NULL, NULL, NULL, gid
FROM pg_catalog.pg_prepared_xacts
WHERE gid = ANY ($2)
