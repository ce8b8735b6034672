# Sourced by the image's entrypoint: what postgres.sql does, with the agent's password.
psql -X -v ON_ERROR_STOP=1 -U postgres -d postgres -v password="$AGENT_PASSWORD" <<'SQL'
CREATE ROLE postgres_agent LOGIN CONNECTION LIMIT 3 PASSWORD :'password';
GRANT pg_monitor TO postgres_agent;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
SQL
