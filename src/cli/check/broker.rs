//! The broker: login, and the exchange. With `amqp.declare` one that is missing is ok: `run` makes it, this does not.

use super::Finding;
use crate::{
    amqp::{Config, Connection, Error},
    spool::chain,
};

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in 0..config.urls.len().max(1) {
        let id = if node == 0 { "amqp.login".to_owned() } else { format!("amqp.login.{node}") };
        match Connection::login(config, node).await {
            Ok(connection) => {
                findings.push(Finding::ok(&id, format!("logged in to {}", connection.node())));
                // Nodes of one cluster have one exchange: the first that answers tells.
                if !findings.iter().any(|finding| finding.id == EXCHANGE) {
                    findings.push(exchange(&connection, config).await);
                }
                connection.close().await;
            }
            Err(error) => findings.push(Finding::failure(&id, chain(&error), mend(&error))),
        }
    }
    findings
}

const EXCHANGE: &str = "amqp.exchange";

async fn exchange(connection: &Connection, config: &Config) -> Finding {
    let name = &config.exchange;
    let make = format!("rabbitmqadmin declare exchange name={name} type=topic durable=true");
    match connection.has_exchange(config).await {
        Ok(true) => {}
        Ok(false) if config.declare => return Finding::ok(EXCHANGE, format!("{name:?} will be declared")),
        Ok(false) => return Finding::failure(EXCHANGE, format!("{name:?} does not exist"), make),
        Err(error) => return Finding::failure(EXCHANGE, chain(&error), make),
    }
    // It is there: declaring it again changes nothing, and tells whether it is the one that is meant.
    match connection.see_exchange(config).await {
        Ok(()) => Finding::ok(EXCHANGE, format!("{name:?} is there")),
        Err(error) => Finding::failure(EXCHANGE, chain(&error), "see the cause; or name another one in amqp.exchange"),
    }
}

fn mend(error: &Error) -> String {
    match error {
        Error::Refused { user, vhost, .. } => {
            format!(
                "rabbitmqctl set_permissions -p {vhost} {user} \"\" \".*\" \".*\"  # and see the password in amqp.url"
            )
        }
        Error::Config(_) => "correct the [amqp] table".into(),
        _ => "start the broker, or set amqp.url to one that answers".into(),
    }
}
