(SELECT NULL::bigint AS dealloc, NULL::timestamp with time zone AS stats_reset)
