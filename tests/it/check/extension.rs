//! `pg_stat_statements`: loaded, created, usable, of the right version, counting and large enough.

use super::config;
use crate::rig::{
    operator::Operator,
    postgres::{Server, Stop},
};

fn restart(server: &Server) {
    server.stop(Stop::Fast);
    server.start();
}

#[test]
fn whatever_the_extension_lacks_is_told_with_what_brings_it() {
    for (version, old) in [(13, "1.7"), (17, "1.10")] {
        let server = Server::private(version);
        let operator = Operator::new(&server, None, &config(&server));
        operator.breaks_and_mends("postgres.extension.preloaded", "warning", || {
            server.sql("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'");
            restart(&server);
        });
        assert_eq!(
            server.sql("SHOW shared_preload_libraries"),
            "auto_explain, pg_stat_statements",
            "what was there stays"
        );
        operator
            .breaks_and_mends("postgres.extension", "warning", || _ = server.sql("DROP EXTENSION pg_stat_statements"));
        operator.breaks_and_mends("postgres.extension.version", "warning", || {
            server.sql("DROP EXTENSION pg_stat_statements");
            server.sql(&format!("CREATE EXTENSION pg_stat_statements VERSION '{old}'"));
        });
        server.sql("CREATE SCHEMA \"a place\"; ALTER EXTENSION pg_stat_statements SET SCHEMA \"a place\"");
        server.sql("GRANT USAGE ON SCHEMA \"a place\" TO PUBLIC");
        operator.breaks_and_mends("postgres.extension.rights", "warning", || {
            server.sql("REVOKE ALL ON SCHEMA \"a place\" FROM PUBLIC");
        });
        operator.breaks_and_mends("postgres.extension.rights", "warning", || {
            server.sql("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA \"a place\" FROM PUBLIC");
        });
        operator.breaks_and_mends("postgres.extension.track", "warning", || {
            server.sql("ALTER SYSTEM SET pg_stat_statements.track = 'none'");
            restart(&server);
        });
        if version >= 14 {
            operator.breaks_and_mends("postgres.extension.size", "warning", || {
                server.sql("ALTER SYSTEM SET pg_stat_statements.max = 100");
                restart(&server);
                // Each is another statement: constants would not tell them apart.
                let sum = |n: usize| format!("SELECT {}", vec!["1"; n].join(" + "));
                server.sql(&(1..200).map(sum).collect::<Vec<_>>().join(";"));
            });
        }
    }
}
