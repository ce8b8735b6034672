-- Names of the roles $1 and of the databases $2; those that are gone have none.
SELECT 'role' AS kind, r.oid, r.rolname AS name FROM pg_catalog.pg_roles r WHERE r.oid = ANY ($1)
UNION ALL
SELECT 'database', d.oid, d.datname FROM pg_catalog.pg_database d WHERE d.oid = ANY ($2)
