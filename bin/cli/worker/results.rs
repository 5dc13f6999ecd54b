//! [`Results`]: what commands wrote and how they ended, in a folder for each task or on a line of
//! JSON for each task.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rabbit_work::{Delivery, Failure};
use rustix::io::Errno;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::cli::common::arguments::refuse_dash_for_file;
use crate::cli::common::base64::set_text_or_base64;
use crate::cli::common::error::CommandError;
use crate::cli::worker::options::Options;
use crate::cli::worker::record_file::RecordFile;
use crate::cli::worker::records::Run;
use crate::util::text::drop_part_of_letter;

/// Where --results go.
#[derive(Debug)]
pub(crate) enum Results {
    /// `DIR/<id>/{stdout,stderr,exit,attempt}`, of the last run.
    Folder(PathBuf),
    /// A line for each task, after its last attempt.
    Lines(Lines),
}

/// A file of lines, and what they need to know.
#[derive(Debug)]
pub(crate) struct Lines {
    file: RecordFile,
    /// The folder of the file. Commands write to files without a name there.
    folder: PathBuf,
    host: String,
    auto_ack: bool,
    max_defers: u32,
}

/// Where a command writes.
#[derive(Debug)]
pub(crate) struct OutputFiles {
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    /// The folder that holds them, under a temporary name. Dropping it removes the folder.
    folder: Option<TempDir>,
}

/// What a name keeps as it is. Anything else is percent-encoded.
const UNSAFE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'+')
    .remove(b'=')
    .remove(b',')
    .remove(b':')
    .remove(b'@');
/// The longest name of a file.
const LONGEST_NAME: usize = 255;
/// As much as a block of a file system has.
const BLOCK: usize = 4096;
/// How much of an output a line of JSON holds.
const LONGEST_OUTPUT: u64 = 1024 * 1024;

impl Results {
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Results, CommandError> {
        refuse_dash_for_file("--results", path)?;
        if path.extension().is_some_and(|it| it == "jsonl") {
            return Lines::open(path, options).map(Results::Lines);
        }
        // A folder that cannot be written is an error now.
        let created = fs::create_dir_all(path).and_then(|()| temporary_folder(path));
        created.map(|_| Results::Folder(path.to_path_buf())).map_err(|error| {
            CommandError::usage("--results", format!("{}: {error}", path.display()))
        })
    }

    /// Rejects a task whose result has no place: running its command again would change nothing.
    pub(crate) fn refuse_no_place(&self, delivery: &Delivery) -> Result<(), Failure> {
        let (Results::Folder(path), Some(id)) = (self, delivery.task().id()) else {
            return Ok(());
        };
        let target = path.join(folder_name(Some(id)));
        match fs::symlink_metadata(&target) {
            Ok(found) if !found.is_dir() => Err(Failure::reject(format!(
                "--results: {} is not a folder; move it away, then replay the task",
                target.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Files for the output of one command.
    pub(crate) fn files(&self) -> io::Result<OutputFiles> {
        let path = match self {
            Results::Folder(path) => path,
            Results::Lines(lines) => return lines.files(),
        };
        let folder = temporary_folder(path)?;
        let open = |name: &str| {
            let path = folder.path().join(name);
            OpenOptions::new().create_new(true).append(true).read(true).open(path)
        };
        let (stdout, stderr) = (open("stdout")?, open("stderr")?);
        Ok(OutputFiles { stdout, stderr, folder: Some(folder) })
    }

    /// Keeps what the command wrote, and how it ended.
    pub(crate) fn keep(&self, files: OutputFiles, run: &Run<'_>) -> io::Result<()> {
        match (self, &files.folder) {
            (Results::Folder(path), Some(folder)) => {
                refuse_full_disk(&files.stdout)?;
                fs::write(folder.path().join("exit"), format!("{}\n", shell_status(run)))?;
                let attempt = run.delivery.attempt();
                fs::write(folder.path().join("attempt"), format!("{attempt}\n"))?;
                replace(path, folder.path(), &folder_name(run.delivery.task().id()))
            }
            (Results::Lines(lines), _) => lines.keep(&files, run),
            (Results::Folder(_), None) => Ok(()),
        }
    }

    /// Keeps why no command ran for a task, if that is its end.
    pub(crate) fn keep_unstarted(
        &self,
        delivery: &Delivery,
        verdict: &Result<(), Failure>,
    ) -> io::Result<()> {
        match self {
            Results::Folder(_) => Ok(()),
            Results::Lines(lines) => lines.keep_unstarted(delivery, verdict),
        }
    }
}

impl Lines {
    fn open(path: &Path, options: &Options) -> Result<Lines, CommandError> {
        let file = RecordFile::open("--results", path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_path_buf();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let Options { auto_ack, max_defers, .. } = *options;
        let lines = Lines { file, folder, host, auto_ack, max_defers };
        // A folder that cannot be written is an error now.
        lines.files().map_err(|error| CommandError::usage("--results", error.to_string()))?;
        Ok(lines)
    }

    fn files(&self) -> io::Result<OutputFiles> {
        let file = || {
            tempfile::tempfile_in(&self.folder).map_err(|error| {
                let text = format!(
                    "the folder {} takes no output of commands: {error}",
                    self.folder.display()
                );
                io::Error::new(error.kind(), text)
            })
        };
        Ok(OutputFiles { stdout: file()?, stderr: file()?, folder: None })
    }

    fn keep(&self, files: &OutputFiles, run: &Run<'_>) -> io::Result<()> {
        let line = line_of_run(files, run, &self.host)?;
        refuse_full_disk(&files.stdout)?;
        if self.is_last(run.delivery, run.verdict) { self.append(&line) } else { Ok(()) }
    }

    fn keep_unstarted(&self, delivery: &Delivery, verdict: &Result<(), Failure>) -> io::Result<()> {
        if !self.is_last(delivery, verdict) {
            return Ok(());
        }
        self.append(&line_of_task(delivery, verdict, &self.host))
    }

    fn is_last(&self, delivery: &Delivery, verdict: &Result<(), Failure>) -> bool {
        self.auto_ack || is_last(verdict, delivery, self.max_defers)
    }

    fn append(&self, line: &Value) -> io::Result<()> {
        self.file.append(|_, _| Ok(format!("{line}\n").into_bytes()))
    }
}

/// Fails if the file can grow no further: then output of the command may be missing, and its failure
/// may be that of the disk.
fn refuse_full_disk(output: &File) -> io::Result<()> {
    let length = output.metadata()?.len();
    output.write_all_at(&[0; BLOCK], length)?;
    output.set_len(length)
}

/// As readable as any folder is, by the umask; a temporary folder is private otherwise.
fn temporary_folder(parent: &Path) -> io::Result<TempDir> {
    let permissions = Permissions::from_mode(0o777);
    tempfile::Builder::new().prefix(".tmp-").permissions(permissions).tempdir_in(parent)
}

/// Renames the folder. An older one of that name is exchanged for it at one moment. Where the file
/// system cannot do that, the older one is moved aside first. Either is removed in the end.
fn replace(parent: &Path, folder: &Path, name: &str) -> io::Result<()> {
    let target = parent.join(name);
    loop {
        match fs::rename(folder, &target) {
            Err(error) if is_in_the_way(&error) => {}
            renamed => return renamed,
        }
        match exchange(folder, &target) {
            // Another worker that runs the same task has moved it aside.
            Err(Errno::NOENT) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => move_aside(parent, &target)?,
            exchanged => return Ok(exchanged?),
        }
    }
}

/// Whether there is a folder of that name, with files in it.
fn is_in_the_way(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists)
}

#[cfg(target_os = "linux")]
fn exchange(folder: &Path, target: &Path) -> Result<(), Errno> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    renameat_with(CWD, folder, CWD, target, RenameFlags::EXCHANGE)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_folder: &Path, _target: &Path) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

fn move_aside(parent: &Path, target: &Path) -> io::Result<()> {
    let aside = temporary_folder(parent)?;
    match fs::rename(target, aside.path()) {
        // Another worker that runs the same task was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}

/// The id as the name of a folder that no shell and no program takes for something else. A name
/// that would be too long ends with a hash of the id.
fn folder_name(id: Option<&str>) -> String {
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return format!("without-id-{}", Uuid::now_v7());
    };
    let encoded = utf8_percent_encode(id, UNSAFE).to_string();
    let name = match encoded.strip_prefix(['.', '-']) {
        Some(rest) => format!("%{:02X}{rest}", id.as_bytes()[0]),
        None => encoded,
    };
    if name.len() <= LONGEST_NAME {
        return name;
    }
    format!("{}%-{}", &name[..200], Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()))
}

/// The status as a shell reports it; -1 if the worker stopped the command and it ended well.
fn shell_status(run: &Run<'_>) -> i32 {
    match run.end.signal {
        Some(signal) => 128 + signal,
        None if run.end.exit == Some(0) => run.exit_value(),
        None => run.end.exit.unwrap_or(-1),
    }
}

/// Whether the task will not run again.
fn is_last(verdict: &Result<(), Failure>, delivery: &Delivery, max_defers: u32) -> bool {
    match verdict {
        Ok(()) | Err(Failure::Reject { .. }) => true,
        Err(Failure::Defer { .. }) => delivery.deferrals() >= max_defers,
        Err(Failure::Retry { .. }) => delivery.attempt() >= delivery.max_attempts(),
        Err(_) => false,
    }
}

/// What is known of a task, whether a command ran for it or not.
fn line_of_task(delivery: &Delivery, verdict: &Result<(), Failure>, host: &str) -> Value {
    let mut line = json!({
        "task": delivery.task().id(),
        "queue": delivery.queue(),
        "attempt": delivery.attempt(),
        "host": host,
    });
    if let Err(failure) = verdict {
        line["reason"] = json!(failure.reason());
    }
    line
}

fn line_of_run(files: &OutputFiles, run: &Run<'_>, host: &str) -> io::Result<Value> {
    let end = run.end;
    let mut line = line_of_task(run.delivery, run.verdict, host);
    let started = end.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    line["started"] = json!(started.as_millis() as f64 / 1000.0);
    line["seconds"] = json!(end.elapsed.as_millis() as f64 / 1000.0);
    for (name, number) in [("exit", end.exit), ("signal", end.signal)] {
        if let Some(number) = number {
            line[name] = json!(number);
        }
    }
    set_output(&mut line, "stdout", &files.stdout)?;
    set_output(&mut line, "stderr", &files.stderr)?;
    Ok(line)
}

/// Sets the start of an output, and how many bytes are missing.
fn set_output(line: &mut Value, name: &str, file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let kept = length.min(LONGEST_OUTPUT);
    let mut bytes = vec![0; kept as usize];
    file.read_exact_at(&mut bytes, 0)?;
    if length > kept {
        drop_part_of_letter(&mut bytes);
        line[format!("{name}_cut")] = json!(length - bytes.len() as u64);
    }
    set_text_or_base64(line, name, &bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_becomes_a_name_of_its_own_that_is_safe() {
        let name = |id: &str| folder_name(Some(id));
        let plain = "0190b6a2-7c51-7000-8000-0a1b2c3d4e5f";
        assert_eq!(name(plain), plain);
        assert_eq!(name("mail:7@x.y+z"), "mail:7@x.y+z");
        assert_eq!(name("../etc/passwd"), "%2E.%2Fetc%2Fpasswd");
        assert_eq!([name("."), name("-rf"), name("%2E")], ["%2E", "%2Drf", "%252E"]);
        assert_eq!([name("a b"), name("é\n")], ["a%20b", "%C3%A9%0A"]);
        assert!(folder_name(Some("")).starts_with("without-id-"));
        let (one, two) = (name(&"/".repeat(255)), name(&"/".repeat(254)));
        assert!(one.len() <= LONGEST_NAME && one != two, "{one}");
    }

    #[test]
    fn a_result_takes_the_place_of_an_older_one() {
        let parent = tempfile::tempdir().expect("a folder");
        let target = parent.path().join("id");
        let replace_by = |text: &str| {
            let folder = temporary_folder(parent.path()).expect("a folder");
            fs::write(folder.path().join("stdout"), text).expect("written");
            replace(parent.path(), folder.path(), "id").map(|()| {
                let old = fs::read_to_string(folder.path().join("stdout")).ok();
                (old, fs::read_to_string(target.join("stdout")).expect("the new one"))
            })
        };
        assert_eq!(replace_by("one").expect("renamed"), (None, "one".into()));
        let exchanged = (Some("one".to_string()), "two".to_string());
        assert_eq!(replace_by("two").expect("exchanged"), exchanged, "never none of that name");
        move_aside(parent.path(), &target).expect("moved");
        move_aside(parent.path(), &target).expect("another worker was faster");
        assert_eq!(replace_by("three").expect("renamed"), (None, "three".into()));
        assert_eq!(fs::read_dir(parent.path()).expect("a folder").count(), 1, "nothing is left");
    }

    #[test]
    fn a_task_whose_result_has_no_place_is_rejected_before_it_runs() {
        use rabbit_work::Task;
        use rabbit_work::testing::delivery;

        let parent = tempfile::tempdir().expect("a folder");
        fs::write(parent.path().join("file"), "mine").expect("written");
        fs::create_dir(parent.path().join("folder")).expect("created");
        let results = Results::Folder(parent.path().to_path_buf());
        let refusal = |id: &str| {
            let delivery = delivery(Task::new("").with_id(id)).build();
            results.refuse_no_place(&delivery).err().map(|it| it.to_string())
        };
        assert_eq!([refusal("folder"), refusal("new")], [None, None]);
        let reason = refusal("file").expect("a reason");
        let path = parent.path().join("file").display().to_string();
        assert!(reason.contains(&format!("{path} is not a folder; move it away")), "{reason}");
    }

    #[test]
    fn the_last_run_of_a_task_is_the_one_after_which_it_is_done_or_dead() {
        use rabbit_work::Task;
        use rabbit_work::testing::delivery;

        let first = delivery(Task::new("")).attempt(1).max_attempts(2).build();
        let last = delivery(Task::new("")).attempt(2).max_attempts(2).deferrals(3).build();
        let is_last = |it: Result<(), Failure>, delivery| is_last(&it, delivery, 3);
        assert!(is_last(Ok(()), &first) && is_last(Err(Failure::reject("no")), &first));
        for failure in [Failure::retry("no"), Failure::defer("busy", None)] {
            assert!(!is_last(Err(failure.clone()), &first) && is_last(Err(failure), &last));
        }
        assert!(!is_last(Err(Failure::requeue("no")), &last));
    }
}
