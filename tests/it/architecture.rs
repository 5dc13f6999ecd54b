//! The floors of the library: uses between them only run down, and never in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each floor after those that it may use.
const FLOORS: [(&str, &[&str]); 11] = [
    ("util", &[]),
    ("model", &["util"]),
    ("amqp", &["model", "util"]),
    ("topology", &["amqp", "model", "util"]),
    ("publish", &["topology", "amqp", "model", "util"]),
    ("batch", &["publish", "topology", "amqp", "model", "util"]),
    ("admin", &["publish", "topology", "amqp", "model", "util"]),
    ("worker", &["publish", "topology", "amqp", "model", "util"]),
    ("command", &["model", "util"]),
    ("signals", &["model", "util"]),
    ("testing", &["worker", "publish", "topology", "amqp", "model", "util"]),
];

#[test]
fn a_floor_uses_only_those_below() {
    let modules = modules();
    for (module, uses) in &modules {
        let floor = floor_of(module);
        let (_, below) = FLOORS.iter().find(|(name, _)| *name == floor).expect("a known floor");
        for used in uses.iter().map(|it| floor_of(it)).filter(|it| *it != floor) {
            assert!(below.contains(&used), "{module} uses `crate::{used}`, which is not below it");
        }
    }
    let floors: BTreeSet<_> = modules.keys().map(|it| floor_of(it)).collect();
    assert_eq!(floors, FLOORS.iter().map(|(name, _)| *name).collect());
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let mut left = modules();
    // What uses none of those that are left is in no circle.
    while let Some(module) = left.iter().find(|(_, uses)| uses.is_empty()).map(|it| it.0.clone()) {
        left.remove(&module);
        left.values_mut().for_each(|uses| {
            uses.remove(&module);
        });
    }
    assert!(left.is_empty(), "in circles, or above one: {left:#?}");
}

#[test]
fn only_the_floor_amqp_names_the_client_library() {
    for module in modules().keys().filter(|it| floor_of(it) != "amqp") {
        let code = code(&path_of(module));
        for library in ["amiquip::", "amq_protocol_types::", "mio::", "rustls::"] {
            assert!(!code.contains(library), "{module} uses `{library}`");
        }
    }
}

/// All deliveries of a channel are requeued together only if it reads dead letters or asks a question.
#[test]
fn only_dead_letters_and_questions_requeue_a_whole_channel() {
    let modules = modules();
    let calling = |call: &str| -> Vec<&str> {
        let calls = modules.keys().filter(|it| code(&path_of(it)).contains(call));
        calls.map(String::as_str).collect()
    };
    assert_eq!(calling(".nack_all(true)"), ["amqp::channel"]);
    assert_eq!(calling("requeue_unsettled("), ["admin::dead_letters", "amqp::channel"]);
}

/// CONTRIBUTING.md names the rule.
#[test]
fn only_the_properties_of_a_task_are_set_by_with() {
    for module in modules().keys().filter(|it| *it != "model::task") {
        let code = code(&path_of(module));
        assert!(!code.contains("pub fn with_"), "{module} has a setter with_…");
    }
}

/// amiquip parses URLs with url 2, whose Unicode tables are 21 crates. It gets none from us, so that
/// the version of idna_adapter without tables is enough for what is built here.
#[test]
fn no_unicode_tables_are_built() {
    let lock = fs::read_to_string("Cargo.lock").expect("the lock file");
    let pin = "cargo update -p idna_adapter --precise 1.0.0";
    assert!(!lock.contains("name = \"icu_"), "after an update run: {pin}");
}

/// The README is also the crate's. It says what is only in a clone.
#[test]
fn the_crate_has_what_the_readme_names() {
    let manifest = fs::read_to_string("Cargo.toml").expect("the manifest");
    let (_, list) = manifest.split_once("\ninclude = [\n").expect("a list");
    let (list, _) = list.split_once("\n]").expect("its end");
    let list: Vec<_> = list.lines().map(|line| line.trim().trim_matches(['"', ',', '/'])).collect();
    let has = |file: &str| {
        let is_in = |it: &&str| file.strip_prefix(it).is_some_and(|rest| rest.starts_with('/'));
        let names = |it: &&str| it.strip_suffix('*').map_or(file == *it, |it| file.starts_with(it));
        list.iter().any(|it| names(it) || is_in(it))
    };
    let readme = fs::read_to_string("README.md").expect("the README");
    let lines: Vec<_> = readme.lines().filter(|line| !line.contains("only in a clone")).collect();
    let readme = lines.join("\n");
    let scripts = words_from(&readme, "scripts/");
    let links = words_from(&readme, "](").into_iter().map(|it| &it["](".len()..]);
    let links: Vec<_> = links.filter(|it| !it.contains("://")).collect();
    assert!(!scripts.is_empty() && links.len() > 10, "{scripts:?} {links:?}");
    for file in scripts.into_iter().chain(links) {
        let file = file.split('#').next().unwrap_or_default();
        assert!(has(file), "{file}, which README.md names, is missing in `include` of Cargo.toml");
        assert!(Path::new(file).exists(), "{file}, which README.md names, does not exist");
    }
}

/// Each word of a text that begins with this, without what ends a sentence or a link.
fn words_from<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    let words = text.match_indices(start).map(|(place, _)| &text[place..]);
    let end = |word: &str| {
        let stops = |it: char| it.is_whitespace() || ")`".contains(it);
        start.len() + word[start.len()..].find(stops).unwrap_or(word.len() - start.len())
    };
    words.map(|word| &word[..end(word)]).collect()
}

#[test]
fn only_the_floor_topology_declares_queues() {
    let may_declare = ["amqp", "topology"];
    for module in modules().keys().filter(|it| !may_declare.contains(&floor_of(it))) {
        let code = code(&path_of(module));
        for call in ["channel.declare(", ".queue_declare(", ".make_and_delete("] {
            assert!(!code.contains(call), "{module} calls `{call}`");
        }
    }
    let declares = |module: &str| code(&path_of(module)).contains("channel.declare(");
    let declaring: Vec<_> = modules().into_keys().filter(|it| declares(it)).collect();
    assert_eq!(declaring, ["topology::declare"]);
}

/// The commands are compiled in the library, where private names could be used. `util` is no part of
/// its API, and has what any program needs.
#[test]
fn the_commands_use_only_the_public_names_of_the_library_and_util() {
    for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/cli")) {
        let code = code(&file);
        for path in paths_in(&code) {
            let is_shared = path.starts_with("cli::") || path.starts_with("util::");
            assert!(is_shared, "{} uses `crate::{path}`", file.display());
        }
        for name in names_of_the_library(&code) {
            let is_public = name.starts_with(char::is_uppercase) || !name.contains("::");
            let is_module = name.starts_with("testing::") || name.starts_with("cli::");
            assert!(is_public || is_module, "{} uses {name}", file.display());
        }
    }
}

/// What is used of `rabbit_work::`, one name or several in braces.
fn names_of_the_library(code: &str) -> Vec<&str> {
    let names = code.split("rabbit_work::").skip(1).flat_map(|rest| {
        let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_' && it != ':');
        match rest.strip_prefix('{') {
            Some(rest) => rest[..rest.find('}').unwrap_or(rest.len())].split(',').collect(),
            None => vec![&rest[..end.unwrap_or(rest.len())]],
        }
    });
    names.map(str::trim).filter(|name| !name.is_empty()).collect()
}

#[test]
fn a_file_has_at_most_400_lines_and_a_function_40() {
    for folder in ["src", "bin", "bench/src", "examples"] {
        for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) {
            let lines = lines_of_code(&file);
            assert!(lines.len() <= 400, "{} has {} lines", file.display(), lines.len());
            for (name, length) in functions(&lines) {
                assert!(length <= 40, "{}: {name} has {length} lines", file.display());
            }
        }
    }
}

#[test]
fn the_length_of_each_function_is_known_whatever_its_visibility() {
    let starts = [
        "fn a() {",
        "    pub(in crate::a) async fn b() {",
        "pub const fn c(",
        "pub(crate) fn d() {",
    ];
    for start in starts {
        let end = start.replace(start.trim_start(), "}");
        let lines = [start, "        // fn no_function() {", &end].map(str::to_owned);
        assert_eq!(functions(&lines), [(start, 3)]);
    }
}

/// Without the unit tests.
fn lines_of_code(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("the file can be read");
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().map(str::to_owned).collect()
}

/// Each function's first line and length, as rustfmt indents it.
fn functions(lines: &[String]) -> Vec<(&str, usize)> {
    let words = ["pub", "const", "async"];
    let may_precede = |it: &str| words.contains(&it) || it.starts_with("pub(") || it.ends_with(')');
    let starts = lines.iter().enumerate().filter(|(_, line)| {
        let before = line.split_once("fn ").map(|(before, _)| before.split_whitespace());
        before.is_some_and(|mut it| it.all(may_precede)) && !line.ends_with(['}', ';'])
    });
    let length = |start: usize, line: &str| {
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        lines[start..].iter().position(|it| *it == end).map_or(0, |it| it + 1)
    };
    starts.map(|(number, line)| (line.as_str(), length(number, line))).collect()
}

/// Each module by its path, with the modules that it uses.
fn modules() -> BTreeMap<String, BTreeSet<String>> {
    let source = source();
    let files: Vec<_> = files(&source).into_iter().filter(|it| is_code(it)).collect();
    let names: BTreeSet<_> = files.iter().map(|it| name_of(it, &source)).collect();
    assert!(names.len() > 50, "{names:?}");
    let uses = |file: &PathBuf| {
        let module = name_of(file, &source);
        let used = paths_in(&code(file)).iter().map(|path| module_of(path, &names)).collect();
        let used: BTreeSet<String> = used;
        (module.clone(), used.into_iter().filter(|it| *it != module).collect())
    };
    files.iter().map(uses).collect()
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Whether this is a module of the library: neither its front page nor a file of unit tests.
fn is_code(file: &Path) -> bool {
    let is_rust = file.extension().is_some_and(|it| it == "rs");
    is_rust && !["lib.rs", "property.rs", "tests.rs"].iter().any(|name| file.ends_with(name))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let entries = entries.map(|it| it.expect("the entry can be read").path());
    let (folders, mut files): (Vec<_>, Vec<_>) = entries.partition(|it| it.is_dir());
    files.extend(folders.iter().flat_map(|it| self::files(it)));
    files
}

/// `worker::consumer` of `src/worker/consumer.rs`.
fn name_of(file: &Path, source: &Path) -> String {
    let file = file.strip_prefix(source).expect("a file of the library").with_extension("");
    let file = if file.ends_with("mod") { file.with_file_name("") } else { file };
    let parts: Vec<_> = file.iter().map(|it| it.to_string_lossy()).collect();
    parts.join("::")
}

fn path_of(module: &str) -> PathBuf {
    let path = source().join(module.replace("::", "/"));
    if path.is_dir() { path.join("mod.rs") } else { path.with_extension("rs") }
}

fn floor_of(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// What is neither a comment nor a test.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("the file can be read");
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect()
}

/// The paths after `crate::`. A part of a module may use the module by `super::`, which does not count.
fn paths_in(code: &str) -> Vec<&str> {
    let is_of_a_path = |it: char| it.is_alphanumeric() || it == '_' || it == ':';
    let ends = |path: &str| path.find(|it| !is_of_a_path(it)).unwrap_or(path.len());
    code.split("crate::").skip(1).map(|path| &path[..ends(path)]).collect()
}

/// The module in which a path ends.
fn module_of(path: &str, modules: &BTreeSet<String>) -> String {
    let mut path = path.trim_end_matches(':');
    while !modules.contains(path) {
        path = path.rsplit_once("::").unwrap_or_else(|| panic!("`crate::{path}` is no module")).0;
    }
    path.to_owned()
}
