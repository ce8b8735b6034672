//! The broker: reaching it, logging in, virtual host, exchange, rights, alarms and queues.

use super::{config, secret};
use crate::rig::{operator::Operator, postgres::shared, rabbit::Broker, tls};

const USER: &str = "watcher";

/// An agent whose user may do what it needs, on one broker.
fn operator(broker: &Broker) -> Operator<'_> {
    let operator = Operator::new(shared(18), Some(broker), &config(shared(18)));
    secret(&operator.at("word"), "word");
    operator.set(&format!(
        "amqp.url = 'amqp://{USER}@127.0.0.1:{}/%2f'\namqp.password_file = '$FOLDER/word'\namqp.exchange = 'checked'",
        broker.port()
    ));
    operator
}

#[test]
fn whatever_keeps_messages_from_the_broker_is_told_with_the_command_that_mends_it() {
    let broker = Broker::with_admin();
    let operator = operator(&broker).with(&["--probe"]);
    broker.ctl(&["add_user", USER, "word"]);
    broker.ctl(&["set_permissions", USER, ".*", ".*", ".*"]);
    operator.apply(&serde_json::json!({
        "mend_in": "shell",
        "mend": "rabbitmqadmin declare exchange name=checked type=topic durable=true && rabbitmqadmin declare queue name=all \
                 durable=true && rabbitmqadmin declare binding source=checked destination=all routing_key='#'",
    }));
    let found = operator.check();
    assert!(found.values().all(|finding| finding["status"] != "failure"), "{found:#?}");

    let finding =
        operator.breaks_and_mends("amqp.login", "failure", || _ = broker.ctl(&["change_password", USER, "another"]));
    assert!(!finding["mend"].as_str().unwrap().contains(" word"), "{finding}");
    operator.breaks_and_mends("amqp.login", "failure", || _ = broker.ctl(&["delete_user", USER]));
    operator.breaks_and_mends("amqp.vhost.rights", "failure", || _ = broker.ctl(&["clear_permissions", USER]));
    operator
        .breaks_and_mends("amqp.rights", "failure", || _ = broker.ctl(&["set_permissions", USER, "", "^checked$", ""]));
    operator
        .breaks_and_mends("amqp.rights", "failure", || _ = broker.ctl(&["set_permissions", USER, "^checked$", "", ""]));
    operator.breaks_and_mends("amqp.route.pg_locks", "failure", || operator.apply(&unbind("all")));
    operator.breaks_and_mends("amqp.exchange.type", "failure", || {
        operator.apply(&shell(
            "rabbitmqadmin delete exchange name=checked && rabbitmqadmin declare exchange name=checked type=fanout",
        ));
    });
    operator.set("amqp.declare = false");
    operator.breaks_and_mends("amqp.exchange", "failure", || {
        operator.apply(&shell("rabbitmqadmin delete exchange name=checked"));
    });
    operator.apply(&shell("rabbitmqadmin declare binding source=checked destination=all routing_key='#'"));
    operator.breaks_and_mends("amqp.alarm", "failure", || _ = broker.ctl(&["set_vm_memory_high_watermark", "0.0001"]));
    operator.breaks_and_mends("amqp.reachable", "failure", || broker.stop());
    operator.set("amqp.declare = true");
    operator.breaks_and_mends("amqp.vhost", "failure", || {
        operator.set(&format!("amqp.url = 'amqp://{USER}@127.0.0.1:{}/a%20place'", broker.port()));
    });
}

fn shell(line: &str) -> serde_json::Value {
    serde_json::json!({ "mend_in": "shell", "mend": line })
}

fn unbind(queue: &str) -> serde_json::Value {
    shell(&format!("rabbitmqadmin delete queue name={queue} && rabbitmqadmin declare queue name={queue} durable=true"))
}

#[test]
fn plain_text_to_a_port_that_speaks_tls_is_told_with_the_right_url() {
    let secured = tls::shared();
    let operator = operator(&secured.broker);
    operator.breaks_and_mends("amqp.tls", "failure", || {
        operator.set(&format!("amqp.url = 'amqp://{USER}@127.0.0.1:{}/%2f'", secured.good()));
    });
    let found = operator.check();
    assert_eq!(found["amqp.tls.certificate"]["status"], "failure", "nobody vouches for it yet: {found:#?}");
    operator.set(&format!("amqp.ca_file = '{}'", secured.authority.file().display()));
    assert!(!operator.check().contains_key("amqp.tls.certificate"));
}
