-- How many entries there are, and those whose mark is none of $1, in the binary form of records: rows that nobody needs
-- cost more to send than to find.
SELECT count(*) AS entries, count(c.queryid) AS visible,
       pg_catalog.string_agg(pg_catalog.record_send(c), '')
           FILTER (WHERE c.mark NOT IN (SELECT pg_catalog.unnest($1))) AS changed
FROM ({counters}) c
