#!/usr/bin/env bash
# Owns the list of everything that is checked, and what of it goes side by side.
set -eu -o pipefail

# Its checks, and the steps they are made of.
# shellcheck source=scripts/check.sh
. "$(dirname "${BASH_SOURCE[0]}")/check.sh"

main() {
    [ $# -eq 0 ] || { usage; [ "$*" = --help ] && exit 0 || exit 2; }
    need_tools
    work=$(mktemp -d)
    export RABBIT_WORK_TEST_RUN=$work
    begin_steps
    trap finish EXIT

    side_by_side at_once build_all start_broker
    lend_what_is_built
    side_by_side three_nodes
    side_by_side integration cargo_alone endurance scripts
}

usage() {
    cat <<'TEXT'
usage: scripts/test.sh

Checks everything: the steps of scripts/check.sh, and beside them all that needs a broker. Stops at
the first step that fails, and ends with the seconds of each. Needs Rust with rustfmt and clippy; a
RabbitMQ it gets through scripts/broker.sh, and takes away again.

AMQP_URL set: the integration tests, the demo and Python's client use that broker, with queues of
their own.
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

# By itself: nodes that get no processor take each other for dead.
three_nodes() {
    step "cluster" tests/cluster.sh
}

endurance() {
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

# Cargo does one of these at a time.
cargo_alone() {
    built
    step "README" tests/readme.sh
}

# ---- what is built once, and lent ----

# All at once and alike, and which program the integration tests are.
build() {
    cargo test --locked --no-run --message-format json-render-diagnostics >"$work/built"
    sed -n 's/.*"executable":"\([^"]*\/it-[0-9a-f]*\)".*/\1/p' "$work/built" >"$work/it"
    [ -x "$(cat "$work/it")" ]
}

lend_what_is_built() {
    export RABBIT_WORK_BIN=${CARGO_TARGET_DIR:-$here/target}/debug
    RABBIT_WORK_IT=$(cat "$work/it")
    export RABBIT_WORK_IT
}

# ---- the broker that all share who break none ----

with_broker() {
    local url
    url=$(broker_url)
    RABBIT_WORK_TEST_URL=$url "$@"
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
    tell_steps
    exit $status
}

main "$@"
