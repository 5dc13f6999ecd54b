//! Writes the man pages and shell completions of the commands, from the definitions that
//! `--help` is made of: `cargo run --example manual -- FOLDER`; see scripts/manual.sh.

// Each command has a `cli` of its own.
#![allow(clippy::duplicate_mod)]

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

#[allow(dead_code, unused_imports)]
#[path = "../bin/producer.rs"]
mod producer;
#[allow(dead_code, unused_imports)]
#[path = "../bin/queuectl.rs"]
mod queuectl;
#[allow(dead_code, unused_imports)]
#[path = "../bin/worker.rs"]
mod worker;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or("say into which folder")?;
    write(producer::Options::command(), &folder)?;
    write(queuectl::Options::command(), &folder)?;
    write(worker::Options::command(), &folder)?;
    Ok(())
}

fn write(mut command: Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    let name = command.get_name().to_string();
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, &name, &completions)?;
    }
    Man::new(command).render(&mut File::create(pages.join(format!("{name}.1")))?)?;
    Ok(())
}
