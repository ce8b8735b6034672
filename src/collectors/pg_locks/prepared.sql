-- What is prepared, in any database.
SELECT transaction, gid, prepared, owner, database FROM pg_catalog.pg_prepared_xacts
