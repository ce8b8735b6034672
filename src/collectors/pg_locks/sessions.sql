-- The sessions $1 as a whole, and of all that take part, $2, those that are somebody's workers or are hidden.
-- In the order in which they are read.
SELECT a.pid,
       -- A worker that applies a transaction for its leader has one too, but locks of its own.
       CASE WHEN a.backend_type = 'parallel worker' THEN a.leader_pid END AS leader_pid,
       a.backend_type IS NULL AND a.query = '<insufficient privilege>' AS hidden, a.application_name,
       (SELECT d.datname FROM pg_catalog.pg_database d WHERE d.oid = a.datid) AS datname,
       pg_catalog.pg_get_userbyid(a.usesysid) AS usename, a.client_addr, a.state, a.state_change, a.xact_start,
       a.query_start,
       -- Bytes, since texts of other databases are in their encodings; no more of them than can leave.
       CASE WHEN a.pid = ANY ($1) THEN pg_catalog.substr(pg_catalog.textsend(a.query), 1, $3::integer) END AS query
-- A column that this server lacks is found one level up, where it is NULL.
FROM (SELECT NULL::oid AS datid, NULL::oid AS usesysid, NULL::text AS application_name, NULL::inet AS client_addr,
             NULL::text AS state, NULL::timestamptz AS state_change, NULL::timestamptz AS xact_start,
             NULL::timestamptz AS query_start, NULL::text AS query, NULL::text AS backend_type,
             NULL::integer AS leader_pid) absent
CROSS JOIN LATERAL (
    SELECT pid, datid, usesysid, application_name, client_addr, state, state_change, xact_start, query_start, query,
           backend_type, leader_pid
    -- Not the view over it: that one joins all roles and databases, which somebody may have locked.
    FROM pg_catalog.pg_stat_get_activity(NULL)
) a
WHERE a.pid = ANY ($1)
   OR (a.pid = ANY ($2) AND (a.backend_type = 'parallel worker' OR a.backend_type IS NULL))
