//! `RABBIT_WORK_<OPTION>`: a variable of the environment for each option. The command line counts
//! first.

use std::collections::{BTreeSet, HashSet};
use std::env;
use std::ffi::OsString;
use std::sync::OnceLock;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use log::warn;

use crate::cli::definitions;

const PREFIX: &str = "RABBIT_WORK_";

/// Options without a variable.
const WITHOUT: [&str; 2] = ["help", "version"];

/// The variable with the broker's URL, which commands of a worker inherit.
pub(crate) const URL_VARIABLE: &str = "AMQP_URL";

/// Where the broker's address comes from: the first of these that is set. A file is the more deliberate
/// choice.
const ADDRESS: [(&str, &str); 4] = [
    ("url-file", "RABBIT_WORK_URL_FILE"),
    ("url", "RABBIT_WORK_URL"),
    ("url-file", "AMQP_URL_FILE"),
    ("url", URL_VARIABLE),
];

/// An option whose value comes from a variable.
#[derive(Debug)]
struct Setting {
    option: String,
    variable: String,
}

/// Those of this process.
static SETTINGS: OnceLock<Vec<Setting>> = OnceLock::new();

/// The command, whose options take their values from variables, unless the command line has the
/// option, or one that excludes it.
pub(crate) fn with_variables(command: Command, words: &[OsString]) -> Command {
    let given = command.clone().ignore_errors(true).try_get_matches_from(words).ok();
    let mut settings = Vec::new();
    let command = with_settings(command, given.as_ref(), &mut settings);
    let _ = SETTINGS.set(settings);
    command
}

fn has_variable(option: &str) -> bool {
    !WITHOUT.contains(&option)
}

fn with_settings(command: Command, given: Option<&ArgMatches>, all: &mut Vec<Setting>) -> Command {
    let settings = settings(&command, given);
    let command = command.mut_args(|arg| {
        let setting = settings.iter().find(|it| arg.get_long() == Some(&it.option));
        setting.map_or(arg.clone(), |it| from_variable(arg, &it.variable))
    });
    all.extend(settings);
    command.mut_subcommands(|subcommand| {
        match given.and_then(|it| it.subcommand_matches(subcommand.get_name())) {
            Some(given) => with_settings(subcommand, Some(given), all),
            None => subcommand,
        }
    })
}

/// The options of this command that take their values from variables. Those of its subcommands have
/// their own.
fn settings(command: &Command, given: Option<&ArgMatches>) -> Vec<Setting> {
    let is_given = |arg: &&Arg| {
        let source = given.and_then(|it| it.value_source(arg.get_id().as_str()));
        source == Some(ValueSource::CommandLine)
    };
    let given: Vec<&Arg> = command.get_arguments().filter(is_given).collect();
    let excludes = |one: &Arg, other: &Arg| command.get_arg_conflicts_with(one).contains(&other);
    let is_free =
        |arg: &&Arg| !given.iter().any(|it| it == arg || excludes(it, arg) || excludes(arg, it));
    let free: Vec<&Arg> = command.get_arguments().filter(is_free).collect();
    let is_free_and_set = |(option, variable): &(&str, &str)| {
        free.iter().any(|arg| arg.get_long() == Some(option) && is_set(arg, variable))
    };
    let address = ADDRESS.into_iter().find(is_free_and_set);
    let setting = |arg: &&Arg| {
        let option = arg.get_long()?;
        let variable = match ADDRESS.iter().any(|(name, _)| *name == option) {
            true => address.filter(|(name, _)| *name == option)?.1.into(),
            false => variable_of(option),
        };
        let counts = has_variable(option) && is_set(arg, &variable);
        counts.then(|| Setting { option: option.into(), variable })
    };
    free.iter().filter_map(setting).collect()
}

fn variable_of(option: &str) -> String {
    format!("{PREFIX}{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// An empty variable counts as not set, because files of variables cannot unset one. So does the value
/// `false` for an option without a value.
fn is_set(arg: &Arg, variable: &str) -> bool {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else { return false };
    let words = ["0", "false", "no", "off", "n", "f"];
    let is_false = || words.iter().any(|it| value.eq_ignore_ascii_case(it));
    !(is_flag(arg) && is_false())
}

fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// The option with the variable's value. Each line is a value of an option that may be repeated.
fn from_variable(arg: Arg, variable: &str) -> Arg {
    let arg = arg.env(OsString::from(variable)).hide_env_values(true);
    match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        ArgAction::Append if has_several_lines(variable) => arg.value_delimiter('\n'),
        _ => arg,
    }
}

/// Not if it only ends with a line break, as the contents of a file do.
fn has_several_lines(variable: &str) -> bool {
    env::var(variable).is_ok_and(|value| value.trim_end().contains('\n'))
}

/// Names the variables whose values an error is about.
pub(crate) fn explain(error: &mut clap::Error) {
    for kind in [ContextKind::InvalidArg, ContextKind::PriorArg] {
        let named = match error.get(kind) {
            Some(ContextValue::String(option)) => ContextValue::String(named(option)),
            Some(ContextValue::Strings(options)) => {
                ContextValue::Strings(options.iter().map(|it| named(it)).collect())
            }
            _ => continue,
        };
        error.insert(kind, named);
    }
    // These say nothing of the option that needs another, or whose value it is.
    if [ErrorKind::MissingRequiredArgument, ErrorKind::InvalidUtf8].contains(&error.kind()) {
        if let Some(tip) = tip() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
    }
}

/// Names all variables in use, for an error that cannot say which of them it is about.
pub(crate) fn tip() -> Option<String> {
    let set: Vec<_> = all().iter().map(|it| it.variable.as_str()).collect();
    (!set.is_empty()).then(|| format!("options are also in the environment: {}", set.join(", ")))
}

/// Whether an option has its value from a variable, which may be of all commands of a machine.
pub(crate) fn is_from_variable(option: &str) -> bool {
    all().iter().any(|it| it.option == option)
}

/// The name of what an error is about, with the variable if an option has its value from one.
pub(crate) fn named(what: &str) -> String {
    let option = what.strip_prefix("--").map(|it| it.split([' ', '=', '[']).next());
    match all().iter().find(|it| option == Some(Some(&it.option))) {
        Some(Setting { variable, .. }) => format!("{variable} ({what})"),
        None => what.into(),
    }
}

fn all() -> &'static [Setting] {
    SETTINGS.get().map_or(&[], Vec::as_slice)
}

/// Warns of variables that no option of any command has: most likely a name is wrong.
pub(crate) fn warn_of_unknown_variables() {
    let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let ours: Vec<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    // As a rule, so that the definitions of all commands are not made for nothing at each start.
    if ours.is_empty() {
        return;
    }
    let options = options();
    let known: HashSet<String> = options.iter().map(|it| variable_of(it)).collect();
    for name in ours.iter().filter(|name| !known.contains(*name)) {
        if let Some(other) = nearest(&option_of(name), &options) {
            let other = variable_of(&other);
            warn!("{name} is no option, and is ignored; did you mean {other}?");
        } else {
            warn!("{name} is no option, and is ignored; see --help for the options");
        }
    }
}

/// The options of all commands that have a variable: a machine sets those of several commands.
fn options() -> BTreeSet<String> {
    fn add(command: &Command, options: &mut BTreeSet<String>) {
        let long = command.get_arguments().filter_map(Arg::get_long);
        options.extend(long.filter(|it| has_variable(it)).map(String::from));
        command.get_subcommands().for_each(|it| add(it, options));
    }
    let mut options = BTreeSet::new();
    definitions().for_each(|it| add(&it, &mut options));
    options
}

fn option_of(variable: &str) -> String {
    let name = variable.strip_prefix(PREFIX).unwrap_or_default();
    name.to_ascii_lowercase().replace('_', "-")
}

/// The option that clap suggests in place of this one.
fn nearest(option: &str, options: &BTreeSet<String>) -> Option<String> {
    let known = options.iter().map(|it| Arg::new(it.clone()).long(it.clone()));
    let words = [String::new(), format!("--{option}")];
    let command = Command::new("").args(known).disable_help_flag(true);
    let error = command.try_get_matches_from(words).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(option) => option.strip_prefix("--").map(String::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_named_after_its_option_and_a_wrong_name_by_the_nearest() {
        assert_eq!(variable_of("max-retry-delay"), "RABBIT_WORK_MAX_RETRY_DELAY");
        let options = options();
        let nearest = |name: &str| nearest(&option_of(&format!("{PREFIX}{name}")), &options);
        assert_eq!(nearest("PREFTCH").as_deref(), Some("prefetch"));
        assert_eq!(nearest("QUEUES").as_deref(), Some("queue"));
        assert_eq!(nearest("OLDR").as_deref(), Some("older"), "of a subcommand");
        assert_eq!(nearest("XYZZY"), None);
        assert_eq!(nearest(""), None);
        assert_eq!(nearest("É"), None);
    }

    #[test]
    fn every_option_has_a_variable_of_its_own() {
        let options = options();
        for option in ["url", "url-file", "header", "wait", "drain", "json", "id", "older", "yes"] {
            assert!(options.contains(option), "{option}");
        }
        assert!(!options.contains("help"), "{options:?}");
        let variables: HashSet<_> = options.iter().map(|it| variable_of(it)).collect();
        assert_eq!(variables.len(), options.len());
    }
}
