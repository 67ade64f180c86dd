//! The command line as a user meets it: what each command says where, and its exit code.

mod exec;
mod golden;
mod here;
mod images;
mod pipes;
mod places;
mod resuming;
mod table;
