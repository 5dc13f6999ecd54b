#!/usr/bin/env bash
# Runs every check. Steps that wait for a broker run side by side.
set -eu -o pipefail

# The checks without a broker, and the functions that run steps.
# shellcheck source=scripts/check.sh
. "$(dirname "${BASH_SOURCE[0]}")/check.sh"

main() {
    [ $# -eq 0 ] || { usage; [ "$*" = --help ] && exit 0 || exit 2; }
    need_tools
    work=$(mktemp -d)
    export RW_TEST_RUN=$work
    # What saves time in the next build costs a fifth of this one.
    export CARGO_INCREMENTAL=0
    begin_steps
    trap finish EXIT

    side_by_side static_checks build_all start_broker
    share_build
    side_by_side three_nodes all_lints
    side_by_side integration cargo_alone endurance scripts
}

usage() {
    cat <<'TEXT'
usage: scripts/test.sh

Runs every check: the steps of scripts/check.sh, except those for other systems, and all that needs
a broker. It stops at the first step that fails, and prints the seconds of each step at the end. It
needs Rust with rustfmt and clippy. scripts/broker.sh starts the RabbitMQ, which is removed at the end.

If AMQP_URL is set, the integration tests, the demo and Python's client use that broker, with queues
of their own.
Exit: 0 all passed, 1 a step failed, 2 usage, 69 a tool is missing.
TEXT
}

# ---- the lanes ----

build_all() {
    step "build" build
}

start_broker() {
    step "private broker" scripts/broker.sh --dir "$work/broker" start
}

integration() {
    step "integration tests" with_broker cargo test --locked --test it
}

# Without other brokers, because nodes that get no processor time consider each other dead.
three_nodes() {
    step "cluster" tests/cluster.sh
}

# In one target folder: there is no time to compile all dependencies twice.
all_lints() {
    lints
    features
}

endurance() {
    # A few tests: all would double the time of the suite, and a job of CI runs them all.
    step "quorum queues by default" tests/quorum.sh
    step "soak" scripts/soak.sh --minutes 1 --seed 7
}

scripts() {
    step "recipes" with_unused_broker tests/shell.sh
    step "examples" with_unused_broker tests/examples.sh
    step "demo" scripts/demo.sh --fast
    step "Python's client" pika
    step "man pages and completions" tests/manual.sh
    step "broker script" tests/broker.sh
    step "benchmarks" scripts/bench.sh --quick
}

# In one lane, because cargo locks the target folder.
cargo_alone() {
    compiled_checks
    step "README" tests/readme.sh
    step "oldest Rust" oldest_rust
}

# ---- built once for all steps ----

# Builds everything in one call, and finds the program of the integration tests.
build() {
    cargo test --locked --no-run --message-format json-render-diagnostics >"$work/built"
    sed -n 's/.*"executable":"\([^"]*\/it-[0-9a-f]*\)".*/\1/p' "$work/built" >"$work/it"
    [ -x "$(cat "$work/it")" ]
    cargo build --locked --package rabbit-work-bench
}

share_build() {
    export RW_BIN=${CARGO_TARGET_DIR:-$here/target}/debug
    RW_IT=$(cat "$work/it")
    export RW_IT
}

# ---- the broker that all steps share that break none ----

with_broker() {
    local url
    url=$(broker_url)
    RW_TEST_URL=$url "$@"
}

# The user's, or ours.
broker_url() {
    scripts/broker.sh --dir "$work/broker" url
}

# For scripts whose queues have names that a user may have: not the user's broker.
with_unused_broker() {
    if [ -n "${AMQP_URL:-}" ]; then
        env -u AMQP_URL "$@"
    else
        with_broker "$@"
    fi
}

pika() {
    local url
    url=$(broker_url)
    AMQP_URL=$url tests/pika.sh
}

# ---- the end ----

finish() {
    local status=$?
    trap '' HUP INT TERM
    end_lanes
    [ $status = 0 ] || tests/end.sh "$work"
    env -u AMQP_URL scripts/broker.sh --dir "$work/broker" stop 2>/dev/null || true
    rm -rf "$work"
    print_table
    exit $status
}

main "$@"
