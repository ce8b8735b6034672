-- All locks on what somebody waits for, and what the server says of who is in whose way. Nothing where nobody waits.
WITH locks AS MATERIALIZED (
    SELECT l.*, coalesce(l.transactionid::text, l.virtualxid, coalesce(l.relation, l.objid, l.database)::text) AS about
    -- A column that this server lacks is found one level up, where it is NULL: 13 has no waitstart.
    FROM (SELECT NULL::timestamptz AS waitstart) absent
    CROSS JOIN LATERAL (
        SELECT locktype, database, relation, page, tuple, virtualxid, transactionid, classid, objid, objsubid,
               virtualtransaction, pid, mode, granted, waitstart
        FROM pg_catalog.pg_locks
        -- Most locks are on the fast path. Who has to wait for one has moved it off; SIReadLock is in nobody's way.
        WHERE NOT fastpath AND mode <> 'SIReadLock'
    ) l
    ORDER BY l.waitstart
), bound AS MATERIALIZED (
    -- Counted from when the locks were read. The heads of queues come first; in a queue of n a call takes n² / 2 steps.
    SELECT pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $1) AS until FROM locks LIMIT 1
)
SELECT locktype, database, relation, page, tuple, virtualxid, transactionid, classid, objid, objsubid,
       virtualtransaction, pid, mode, granted, waitstart AS wait_start,
       CASE WHEN NOT granted AND pg_catalog.clock_timestamp() < (SELECT until FROM bound)
            THEN pg_catalog.pg_blocking_pids(pid) END AS blockers
FROM locks
-- A little more than what is waited for: what is the same is told by all columns together.
WHERE about IN (SELECT about FROM locks WHERE NOT granted)
   -- Of who waits for a row, the row; of a prepared transaction, which one it is.
   OR (locktype = 'tuple' AND pid IN (SELECT pid FROM locks WHERE NOT granted))
   OR (locktype = 'transactionid' AND pid IS NULL AND EXISTS (SELECT FROM locks WHERE NOT granted))
