//! Faults, one at a time, between the built agent and real servers and disks: what waits, what flows on, what is told, and
//! that it heals. `tests/README.md` says which row of the matrix of faults each one is.

mod answers;
mod broken_disks;
mod brokers;
mod courier;
mod databases;
mod disk_figures;
mod evidence;
mod folders;
mod full_disks;
mod kills;
pub(crate) mod layout;
mod left;
mod limits;
mod order;
mod outside;
mod picture;
mod pile_up;
mod power;
mod processes;
pub(crate) mod report;
pub(crate) mod scene;
mod strangers;
mod tls;
mod upgrades;
