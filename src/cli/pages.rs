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
    /// The command, as "spool status"; left out: the program
    command: Vec<String>,
}

impl Man {
    pub(super) fn run(self) -> Outcome {
        let mut program = without_help(super::Arguments::command());
        program.build();
        let mut command = &program;
        for name in &self.command {
            let found = command.find_subcommand(name).filter(|command| !command.is_hide_set());
            command =
                found.ok_or_else(|| Failure::Failed(format!("there is no command {:?}", self.command.join(" "))))?;
        }
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone().name(name)).render(&mut page)?;
        say(&String::from_utf8_lossy(&page))
    }
}

/// Without the commands that print help: a page that refers to theirs would refer to nothing of use.
fn without_help(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}
