//! Writes the man pages and shell completions of the commands, from the definitions that
//! `--help` is made of: `cargo run --example manual -- FOLDER`; see scripts/manual.sh.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::builder::Resettable;
use clap_complete::Shell;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or("say into which folder")?;
    rabbit_work::cli::definitions().try_for_each(|command| write(command, &folder))
}

/// The pages and completions of a program.
fn write(mut command: Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    let name = command.get_name().to_string();
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    // One for each subcommand, too: the command's own page names them.
    clap_mangen::generate_to(without_sections(command.clone()), &pages)?;
    command.build();
    correct_synopses(&mut command, &name, &pages)?;
    add_sections(&command, &name, "", &pages)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, &completions)?;
    }
    correct_labels(&completions.join(format!("{name}.bash")), &name)
}

/// clap_complete 4.6 jumps to other labels than it sets if the name has a hyphen (clap issue 6421).
fn correct_labels(completions: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(completions)?;
    let [given, looked_for] = ["__subcmd__", "__"].map(|it| format!(" {}", name.replace('-', it)));
    fs::write(completions, text.replace(&given, &looked_for))?;
    Ok(())
}

fn without_sections(command: Command) -> Command {
    command.after_long_help(Resettable::Reset).mut_subcommands(without_sections)
}

/// A page has the sections of the command that has an exit status for all of its subcommands.
fn add_sections(
    command: &Command,
    page: &str,
    above: &str,
    pages: &Path,
) -> Result<(), Box<dyn Error>> {
    let own = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let sections = if above.starts_with("Exit status") { above } else { &own };
    add_to_page(&pages.join(format!("{page}.1")), &as_roff(sections))?;
    for subcommand in command.get_subcommands().filter(|it| it.get_name() != "help") {
        let page = format!("{page}-{}", subcommand.get_name());
        add_sections(subcommand, &page, sections, pages)?;
    }
    Ok(())
}

/// Puts them before the last section, the version.
fn add_to_page(page: &Path, sections: &str) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(page)?;
    let end = text.find(".SH VERSION\n").unwrap_or(text.len());
    fs::write(page, format!("{}{sections}{}", &text[..end], &text[end..]))?;
    Ok(())
}

/// The form of the text is that of bin/cli/common/manual.rs.
fn as_roff(text: &str) -> String {
    let mut roff = String::new();
    let mut section = "";
    for line in text.lines().filter(|line| !line.is_empty()) {
        let shown = line.trim_start().replace('\\', "\\\\").replace('-', "\\-");
        // What begins with a dot or a quote would be a request.
        let shown = if shown.starts_with(['.', '\'']) { format!("\\&{shown}") } else { shown };
        roff += &match line.strip_prefix("  ") {
            None => {
                section = line.trim_end_matches(':');
                format!(".SH {:?}\n", section.to_uppercase())
            }
            Some(_) if section == "Examples" => format!(".PP\n.nf\n{shown}\n.fi\n"),
            Some(more) if more.starts_with(' ') => format!("{shown}\n"),
            Some(_) => match shown.split_once("  ") {
                Some((term, meaning)) => format!(".TP\n\\fB{term}\\fR\n{}\n", meaning.trim_start()),
                None => format!("{shown}\n"),
            },
        };
    }
    roff
}

/// Puts what `--help` says of the usage in place of clap_mangen's list, which knows neither `--`
/// nor what comes several times.
fn correct_synopses(command: &mut Command, page: &str, pages: &Path) -> Result<(), Box<dyn Error>> {
    let file = pages.join(format!("{page}.1"));
    let text = fs::read_to_string(&file)?;
    let (before, after) = text.split_once(".SH SYNOPSIS\n").ok_or("a page without a synopsis")?;
    let (_, after) = after.split_once('\n').ok_or("a page that ends with its synopsis")?;
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().replace('-', "\\-");
    fs::write(&file, format!("{before}.SH SYNOPSIS\n{usage}\n{after}"))?;
    for subcommand in command.get_subcommands_mut().filter(|it| it.get_name() != "help") {
        let page = format!("{page}-{}", subcommand.get_name());
        correct_synopses(subcommand, &page, pages)?;
    }
    Ok(())
}
