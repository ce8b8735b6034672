-- All locks on what somebody waits for, and what the server says of who is in whose way. Nothing where nobody waits.
WITH locks AS MATERIALIZED (
    SELECT l.*,
           pg_catalog.concat_ws('/', l.locktype, l.database, l.relation, l.page, l.tuple, l.virtualxid,
                                l.transactionid, l.classid, l.objid, l.objsubid) AS object
    -- A column that this server lacks is found one level up, where it is NULL: 13 has no waitstart.
    FROM (SELECT NULL::timestamptz AS waitstart) absent
    CROSS JOIN LATERAL (
        SELECT locktype, database, relation, page, tuple, virtualxid, transactionid, classid, objid, objsubid,
               virtualtransaction, pid, mode, granted, waitstart
        FROM pg_catalog.pg_locks
    ) l
    WHERE EXISTS (SELECT FROM pg_catalog.pg_locks w WHERE NOT w.granted)
), waiting AS MATERIALIZED (
    -- Each call stops the lock manager for a moment: never for more than a thousand.
    SELECT w.pid, pg_catalog.pg_blocking_pids(w.pid) AS blockers
    FROM (SELECT DISTINCT pid FROM locks WHERE NOT granted AND pid IS NOT NULL ORDER BY pid LIMIT 1000) w
)
SELECT l.object, l.locktype, l.database, l.relation, l.pid, l.mode, l.granted, l.waitstart AS wait_start, w.blockers,
       l.database IN (0, (SELECT a.datid FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a))
           AS named_here,
       -- A prepared transaction has no pid; its own lock on its xid tells which one it is.
       (SELECT p.gid FROM locks x JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
        WHERE l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
          AND x.virtualtransaction = l.virtualtransaction LIMIT 1) AS gid
FROM locks l LEFT JOIN waiting w ON w.pid = l.pid AND NOT l.granted
WHERE l.object IN (SELECT object FROM locks WHERE NOT granted)
   OR (l.locktype = 'tuple' AND l.granted AND l.pid IN (SELECT pid FROM waiting))
