//! Completions and man pages, for those who package the program.

use clap::CommandFactory;

use super::{Failure, Outcome, say};

/// Print a shell's completions
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Arguments::command(), "postgres-agent", &mut script);
        say(&String::from_utf8_lossy(&script))
    }
}

/// Print the man page of the program, or of one command
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The command; left out: the program
    command: Option<String>,
}

impl Man {
    pub(super) fn run(self) -> Outcome {
        let mut program = super::Arguments::command();
        program.build();
        let command = match &self.command {
            None => program,
            Some(name) => {
                let found = program.find_subcommand(name).filter(|command| !command.is_hide_set());
                let command = found.ok_or_else(|| Failure::Failed(format!("there is no command {name:?}")))?;
                command.clone().name(format!("postgres-agent-{name}"))
            }
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        say(&String::from_utf8_lossy(&page))
    }
}
