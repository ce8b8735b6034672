//! All findings that `check` can make: what each one is about, and what mends it. The README's table is made of this one.

/// One finding.
pub(super) struct Entry {
    /// As in [`super::Finding`]; what stands in capitals is a name.
    id: &'static str,
    /// What is looked at.
    about: &'static str,
    /// What mends it, in general: `check` itself prints the exact words.
    mend: &'static str,
}

/// All findings as a table of Markdown.
pub(super) fn markdown() -> String {
    let row = |entry: &Entry| format!("| `{}` | {} | {} |\n", entry.id, entry.about, entry.mend);
    format!("| finding | looks at | what mends it |\n|---|---|---|\n{}", ALL.iter().map(row).collect::<String>())
}

const fn entry(id: &'static str, about: &'static str, mend: &'static str) -> Entry {
    Entry { id, about, mend }
}

/// In the order in which they are made.
const ALL: &[Entry] = &[
    entry("configuration", "keys, types and ranges of the configuration", "the key that is named"),
    entry("postgres.password_file", "the file can be read, and by its owner alone", "`chown`, `chmod 0600`"),
    entry("amqp.password_file", "the file is for its owner alone", "`chmod 0600`"),
    entry(
        "postgres.url",
        "a password in the configuration file, which others may read",
        "`chmod 0600`, or `postgres.password_file`",
    ),
    entry(
        "amqp.url",
        "a password in the configuration file, which others may read",
        "`chmod 0600`, or `amqp.password_file`",
    ),
    entry("amqp.urls", "as `amqp.url`", "`chmod 0600`, or `amqp.password_file`"),
    entry("spool.folder", "the spool's folder is there or can be made", "`install -d`"),
    entry("spool.rights", "the agent's user may write to it", "`chown`, `chmod 0700`"),
    entry("spool.mode", "nobody else may look into it", "`chmod 0700`"),
    entry("spool.file_system", "it is on a disk of this host", "`spool.dir`"),
    entry("spool.held", "whether an agent runs on it", "nothing: it is told"),
    entry("spool.space", "`spool.max_bytes` fits beside `spool.min_free`", "room, or these two"),
    entry("host.descriptors", "enough files can be open", "`ulimit -n`, `LimitNOFILE=`"),
    entry("host.proc", "the host's `/proc` is seen", "`collectors.system_metrics.proc`"),
    entry("host.disk_paths", "the paths whose space is told are there", "`collectors.system_metrics.disk_paths`"),
    entry("http.exposed", "the status page is for this host alone", "`http.listen`"),
    entry("http.listen", "its port can be had", "`http.listen`"),
    entry("postgres.reachable", "somebody answers at host and port", "start the server, or `postgres.url`"),
    entry("postgres.login", "the role's password", "`ALTER ROLE … PASSWORD`, or the file with it"),
    entry("postgres.role", "the role exists and may log in", "`CREATE ROLE … LOGIN`"),
    entry("postgres.hba", "`pg_hba.conf` lets it in", "a line in it"),
    entry("postgres.database", "the database exists", "`CREATE DATABASE`, or `postgres.url`"),
    entry(
        "postgres.connections",
        "the role, and the server, have connections left",
        "`CONNECTION LIMIT`, `max_connections`",
    ),
    entry("postgres.tls", "the way to the server is encrypted, or does not leave the host", "`ssl = on`, `sslmode`"),
    entry("postgres.tls.certificate", "the server's certificate holds", "`sslrootcert`, another certificate"),
    entry("postgres.version", "13 or newer, and known to this agent", "an upgrade"),
    entry("postgres.rights", "the role sees what other roles do", "`GRANT pg_monitor`"),
    entry("postgres.superuser", "the role may do no more than look", "`NOSUPERUSER`"),
    entry("postgres.settings", "the server's settings can be read", "what the cause says"),
    entry("postgres.recovery", "primary or standby, and whether that one replays", "`pg_wal_replay_resume()`"),
    entry("postgres.pooler", "no pooler stands between", "the server's own host and port"),
    entry("postgres.track_activities", "sessions tell what they do", "`track_activities = on`"),
    entry("postgres.track_io_timing", "reads and writes are timed", "`track_io_timing = on`"),
    entry("postgres.query_size", "the server keeps 4,096 bytes of a statement", "`track_activity_query_size`"),
    entry("postgres.query_id", "sessions and statements can be joined (14 and later)", "`compute_query_id = auto`"),
    entry("clocks", "the server's clock and this host's agree", "`timedatectl set-ntp true`"),
    entry("postgres.extension.installed", "the server has `pg_stat_statements`", "the package with contrib modules"),
    entry(
        "postgres.extension.preloaded",
        "it is loaded at the server's start",
        "`shared_preload_libraries`, a restart",
    ),
    entry("postgres.extension", "it is created in the agent's database", "`CREATE EXTENSION`"),
    entry("postgres.extension.rights", "the role may use it", "`GRANT USAGE`, `GRANT EXECUTE`"),
    entry("postgres.extension.version", "it is of the server's own version", "`ALTER EXTENSION … UPDATE`"),
    entry("postgres.extension.track", "it counts", "`pg_stat_statements.track = top`"),
    entry("postgres.extension.size", "it is not full and throws nothing away", "`pg_stat_statements.max`, a restart"),
    entry("collector.NAME", "one look of each collector", "what the cause says"),
    entry(
        "spool.outage",
        "an outage of `spool.max_age` fits, at the rate as now",
        "room, `spool.max_bytes`, `spool.max_age`",
    ),
    entry("amqp.reachable", "the broker answers", "start it, or `amqp.url`"),
    entry("amqp.login", "user and password", "`rabbitmqctl change_password`, `add_user`"),
    entry("amqp.version", "RabbitMQ 3.8 or newer", "an upgrade"),
    entry("amqp.tls", "the way to the broker is encrypted, or does not leave the host", "`amqps://`"),
    entry("amqp.tls.certificate", "certificates hold", "`amqp.ca_file`, another certificate"),
    entry("amqp.vhost", "the virtual host exists", "`rabbitmqctl add_vhost`"),
    entry("amqp.vhost.rights", "the user may use it", "`rabbitmqctl set_permissions`"),
    entry("amqp.exchange", "the exchange is there, or will be declared", "`rabbitmqadmin declare exchange`"),
    entry("amqp.exchange.type", "it is a durable topic exchange", "declare it anew, or another `amqp.exchange`"),
    entry("amqp.rights", "the user may write to it, and declare it where it is to", "`rabbitmqctl set_permissions`"),
    entry("amqp.alarm", "the broker takes messages (`--probe`)", "room for it: memory, disk"),
    entry("amqp.queue.full", "queues take messages (`--probe`)", "consume, or a longer queue"),
    entry("amqp.route.KEY", "a queue is bound for each routing key (`--probe`)", "`rabbitmqadmin declare binding`"),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    const BEGIN: &str = "<!-- what check finds: made from the code -->\n";
    const END: &str = "<!-- end of what check finds -->";

    #[test]
    fn the_readme_has_all_findings() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        let readme = fs::read_to_string(&path).expect("a README");
        let (before, rest) = readme.split_once(BEGIN).expect("where the table begins");
        let (now, after) = rest.split_once(END).expect("where it ends");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(path, format!("{before}{BEGIN}{}{END}{after}", markdown())).expect("written");
        } else {
            assert_eq!(now, markdown(), "UPDATE=1 cargo test --lib the_readme_has_all_findings writes it anew");
        }
    }

    #[test]
    fn each_finding_stands_there_once() {
        let ids: BTreeSet<_> = ALL.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), ALL.len());
        assert!(ids.len() >= 30);
    }
}
