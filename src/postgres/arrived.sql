-- Whether the settings that the agent asks for at the start of its connections are in force: through a pooler they are not.
SELECT coalesce(pg_catalog.current_setting('postgres_agent.session', true) = $1, false) AS direct
