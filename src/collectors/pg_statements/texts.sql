-- Texts of the statements $1, all at once: each call reads the server's whole file of texts. $2 characters
-- are enough.
SELECT a.userid, a.dbid, a.queryid, a.toplevel, pg_catalog.left(a.query, $2::int4) AS query,
       pg_catalog.char_length(a.query) > $2 AS cut
FROM (SELECT NULL::boolean AS toplevel) absent
CROSS JOIN LATERAL (
    SELECT userid, dbid, queryid, toplevel, query FROM {schema}.pg_stat_statements(true)
) a
WHERE a.queryid = ANY ($1)
