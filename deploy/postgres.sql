-- The agent's role: it sees all statistics and can change nothing. May be run again and again; PostgreSQL 13 to 18.
--
--   sudo -u postgres psql -X -d postgres -f postgres.sql
--
-- as a superuser, in the database that the agent connects to. Over the local socket the role needs no password (peer:
-- the agent's user is called as the role); from elsewhere give it one:
--
--   sudo -u postgres psql -c '\password postgres_agent'

\set ON_ERROR_STOP on
SET client_min_messages = warning;
BEGIN;

SELECT 'CREATE ROLE postgres_agent'
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'postgres_agent') \gexec

-- Two connections are the most that the agent opens (postgres.pool_size); the third one is for "postgres-agent check".
ALTER ROLE postgres_agent LOGIN CONNECTION LIMIT 3;
GRANT pg_monitor TO postgres_agent;

CREATE EXTENSION IF NOT EXISTS pg_stat_statements;

COMMIT;

-- The extension works only where the server loads it at its start.
SELECT pg_catalog.strpos(pg_catalog.current_setting('shared_preload_libraries'), 'pg_stat_statements') = 0 AS not_loaded \gset
\if :not_loaded
\warn 'pg_stat_statements is not loaded: add it to shared_preload_libraries and restart PostgreSQL'
\endif
