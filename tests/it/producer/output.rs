//! What a producer prints: help, summary, log; and outputs that are closed or full.

use super::{SOON, errors, json, producer};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

#[test]
fn json_has_the_fields_of_the_contract_and_nothing_else_on_stdout() {
    let queue = unique_queue("json");

    let output = producer(&queue, &["--json", "x"]).run(SOON);

    let summary = json(&output);
    let keys: Vec<&String> = summary.as_object().expect("an object").keys().collect();
    let wanted = ["confirmed", "nacked", "published", "returned", "seconds", "unconfirmed"];
    assert_eq!(keys, wanted);
    for field in ["nacked", "returned", "unconfirmed"] {
        assert_eq!(summary[field], 0, "{field}");
    }
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
}

/// The ladder has 39 rungs.
#[test]
fn the_help_names_every_delay() {
    for program in [Command::producer(&["--help"]), Command::worker(&["--help"])] {
        let help = program.run(SOON).success();
        let (_, ladder) = help.split_once("are rounded up to\n").expect("the ladder");
        let (ladder, _) = ladder.split_once("\n\n").expect("its end");
        let rungs: Vec<&str> = ladder.split([' ', ',', '\n']).filter(|it| !it.is_empty()).collect();
        assert_eq!((rungs.len(), rungs.last()), (39, Some(&"42d")), "{ladder}");
    }
}

#[test]
fn whatever_keeps_a_producer_from_publishing_has_a_summary_too() {
    let (url, queue) = (shared_broker().url(), unique_queue("absent"));
    let bad_login = format!("amqp://guest:wrong@{}", shared_broker().address());
    let bad_vhost = format!("{url}/no-such-vhost");
    let table: [&[&str]; 4] = [
        &["--url", &bad_login, "x"],
        &["--url", &bad_vhost, "x"],
        &["--url", url, "--queue", &queue],
        &["--url", "nonsense", "x"],
    ];
    for arguments in table {
        let output = Command::producer(&["--json"]).args(arguments).run(SOON);
        output.assert_code(2);
        let stdout = output.stdout();
        let summary: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(summary["confirmed"], 0, "{arguments:?}");
        assert!(summary["read"].is_u64(), "{arguments:?}");
    }
}

#[test]
fn row_66_a_rust_log_that_means_nothing_is_passed_over() {
    let queue = unique_queue("garbage");

    let output = producer(&queue, &["x"]).env("RUST_LOG", "==,//,\u{1}").run(SOON);

    output.assert_code(0);
}

#[test]
fn row_63_a_reader_that_goes_away_is_no_panic_and_no_loss() {
    let queue = unique_queue("pipe");
    let script = format!(
        "'{}' --url '{}' --queue '{queue}' --repeat 2000 x | head -n 1; \
         exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("bash", &["-c", &script]).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'x'\n");
    assert!(!output.stderr().contains("panic"), "{}", output.stderr());
    assert_eq!(shared_broker().client().count(&queue), 2000);
}

#[test]
fn row_64_a_full_disk_for_the_output_is_exit_1() {
    let queue = unique_queue("devfull");
    let script = format!(
        "exec '{}' --url '{}' --queue '{queue}' x >/dev/full",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("sh", &["-c", &script]).run(SOON);

    output.assert_code(1);
    assert!(errors(&output)[0].contains("standard output"), "{}", output.stderr());
    assert_eq!(shared_broker().client().count(&queue), 1);
}

#[test]
fn row_64_a_limit_on_files_is_reported_as_a_full_disk_is_and_exit_1() {
    let queue = unique_queue("fsize");
    let dir = tempfile::tempdir().expect("a folder");
    let script = format!(
        "ulimit -f 1; seq 1000 | '{}' --url '{}' --no-declare --queue '{queue}' --json --lines \
         --failed failed",
        env!("CARGO_BIN_EXE_producer"),
        shared_broker().url()
    );

    let output = Command::program("bash", &["-c", &script]).current_dir(dir.path()).run(SOON);

    output.assert_code(1);
    let told = "--failed cannot be written: File too large";
    assert!(output.stderr().contains(told), "{}", output.stderr());
    assert_eq!(json(&output)["returned"], 1000);
}
