-- Where the extension is, and what keeps the role from it.
SELECT
    -- Not what the library is told before it is loaded: such settings are not listed.
    EXISTS (SELECT FROM pg_catalog.pg_settings s WHERE s.name = 'pg_stat_statements.max') AS loaded,
    -- NULL for a role that may not read it.
    (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'shared_preload_libraries') AS preloaded,
    EXISTS (SELECT FROM pg_catalog.pg_available_extensions() a WHERE a.name = 'pg_stat_statements') AS installed,
    e.extversion AS version,
    pg_catalog.quote_ident(n.nspname) AS schema,
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS usage,
    f.executes,
    f.info
FROM (SELECT 'pg_stat_statements'::pg_catalog.name AS name) wanted
LEFT JOIN pg_catalog.pg_extension e ON e.extname = wanted.name
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
LEFT JOIN LATERAL (
    SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) AS executes,
           pg_catalog.bool_or(p.proname = 'pg_stat_statements_info') AS info
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_proc p ON p.oid = d.objid
    WHERE d.refobjid = e.oid AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
      AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.deptype = 'e'
      AND p.proname IN ('pg_stat_statements', 'pg_stat_statements_info')
) f ON true
