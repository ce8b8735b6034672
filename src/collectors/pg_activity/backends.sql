-- Every backend; the text only of those that may have a row (active ones, and $1), and not more than $2 bytes of it: as
-- bytes, because a cut as text fails where another database's encoding is no valid one here.
WITH own AS MATERIALIZED (
    -- Once, and not for each row.
    SELECT current_user AS name, pg_catalog.current_setting('application_name') AS application_name,
           pg_catalog.pg_size_bytes(pg_catalog.current_setting('track_activity_query_size')) AS text_bytes
)
-- In the order in which they are read.
SELECT a.pid, a.leader_pid, a.datname, a.state, a.wait_event_type, a.wait_event, a.backend_type, a.query_start,
       coalesce(a.query = '<insufficient privilege>', false) AND a.backend_type IS NULL AS hidden,
       a.application_name,
       coalesce(a.usename = o.name AND a.application_name = o.application_name, false) AS own,
       CASE WHEN $2 > 0 AND (a.state <> 'idle' OR a.pid = ANY ($1))
            THEN pg_catalog.substr(pg_catalog.textsend(a.query), 1, $2::integer)
       END AS query,
       -- The server keeps one byte less than the setting says, and cuts before a character, of up to four bytes.
       CASE WHEN pg_catalog.octet_length(a.query) > $2 THEN true
            WHEN pg_catalog.octet_length(a.query) < o.text_bytes - 4 THEN false
            WHEN pg_catalog.octet_length(a.query) >= o.text_bytes - 1 THEN true
       END AS cut,
       a.usename, a.client_addr, a.client_port, a.backend_start, a.xact_start, a.state_change, a.query_id, a.backend_xid,
       a.backend_xmin
FROM own o
-- A column that this server lacks is found one level up, where it is NULL: 13 has no query_id.
CROSS JOIN (SELECT NULL::name AS datname, NULL::name AS usename, NULL::text AS application_name,
                   NULL::inet AS client_addr, NULL::integer AS client_port, NULL::timestamptz AS backend_start,
                   NULL::timestamptz AS xact_start, NULL::timestamptz AS query_start,
                   NULL::timestamptz AS state_change, NULL::text AS wait_event_type, NULL::text AS wait_event,
                   NULL::text AS state, NULL::text AS backend_type, NULL::integer AS leader_pid,
                   NULL::bigint AS query_id, NULL::xid AS backend_xid, NULL::xid AS backend_xmin,
                   NULL::text AS query) absent
CROSS JOIN LATERAL (
    SELECT pid, datname, usename, application_name, client_addr, client_port, backend_start, xact_start, query_start,
           state_change, wait_event_type, wait_event, state, backend_type, leader_pid, query_id,
           backend_xid::text AS backend_xid, backend_xmin::text AS backend_xmin, query
    FROM pg_catalog.pg_stat_activity
) a
