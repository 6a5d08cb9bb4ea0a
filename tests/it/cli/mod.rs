//! The program's commands and its first start, as processes.

mod commands;
mod data_directories;
mod first_run;
