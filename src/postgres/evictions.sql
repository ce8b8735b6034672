-- How full pg_stat_statements is, and how often it threw entries away (14 and later).
SELECT
    (SELECT pg_catalog.count(*) FROM {schema}.pg_stat_statements(false)) AS entries,
    (SELECT i.dealloc FROM {schema}.pg_stat_statements_info() i) AS evicted
