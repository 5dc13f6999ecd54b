#!/usr/bin/env bash
# Runs the examples that end by themselves, and compares what they print, without times and in any
# order, with what is shown here.
# Usage: tests/examples.sh; AMQP_URL or RW_TEST_URL names the broker, or else one is
# started.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PATIENCE=180 # seconds, for each example

main() {
    work=$(mktemp -d)
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    bin=${RW_BIN:-}
    if [ -z "$bin" ]; then
        cargo build --locked --quiet --manifest-path "$here/Cargo.toml" --examples
        bin=${CARGO_TARGET_DIR:-$here/target}/debug
    fi
    AMQP_URL=${AMQP_URL:-${RW_TEST_URL:-}}
    if [ -z "$AMQP_URL" ]; then
        AMQP_URL=$("$here/scripts/broker.sh" --dir "$work/broker" start)
    fi
    export AMQP_URL
    shows embed '100 tasks confirmed' '100 tasks done, the sum of the squares is 338350'
    shows delayed 'after TIME: now' 'after TIME: in two seconds'
    shows retry 'flaky: attempt 1 of 3' 'flaky: attempt 2 of 3' 'flaky: attempt 3 of 3' \
        'busy: attempt 1 of 3' 'busy: attempt 2 of 3' 'broken: attempt 1 of 3' \
        '2 done, 3 retried, 1 dead'
    shows dead_letters '2 tasks are dead letters' 'nonsense: this is no order' \
        'order 17: the database is down' '1 replayed' '1 done'
    shows observer 'a task failed after TIME: 7 fails once' \
        'tasks_done_total 10' 'tasks_retried_total 1' 'tasks_started_total 11'
    shows queues 'shipped order 1' 'shipped order 2' 'shipped order 3' \
        'sent order 1 is on its way' 'sent order 2 is on its way' 'sent order 3 is on its way' \
        'example.orders: 3 done' 'example.mail: 3 done' '6 done'
    shows threads '1000 tasks confirmed' '1000 tasks done'
    # shellcheck disable=SC2016 # The backquotes are part of the text.
    shows typed 'a.jpg becomes 640 wide' 'b.jpg is deleted' '2 tasks done' \
        'dead in attempt 1: invalid digit found in string' \
        'dead in attempt 1: the body is not the JSON expected: missing field `width` at line 1 column 18' \
        "dead in attempt 2: this worker does not know the task type 'rotate', only: delete, resize"
    shows jobs '5 jobs done' '{"a.jpg": 640, "b.jpg": 640}'
    shows testing 'the jobs and the producer work as they should'
    shows batch '49950 done, 50 dead, 0 left'
    shows web_service 'GET /health: HTTP/1.1 200 OK' 'POST /orders/17: HTTP/1.1 202 Accepted' \
        'POST /orders/18: HTTP/1.1 202 Accepted' 'DELETE /orders/17: HTTP/1.1 400 Bad Request' \
        '2 tasks done'
    echo "examples: each printed what it has to"
}

# shows EXAMPLE LINE...
shows() {
    local example=$1
    shift
    echo "examples: $example"
    timeout --kill-after=5 "$PATIENCE" "$bin/examples/$example" </dev/null >"$work/real" ||
        fail "$example ended with status $?"
    diff -u <(printf '%s\n' "$@" | sort) <(sed -E 's/[0-9.]+ ?(s|ms|µs|ns):/TIME:/' "$work/real" | sort) >&2 ||
        fail "$example printed (+) what it should not, or did not print (-) what it should"
}

fail() {
    echo "examples: FAILED: $*" >&2
    exit 1
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    env -u AMQP_URL "$here/scripts/broker.sh" --dir "$work/broker" stop 2>/dev/null || true
    rm -rf "$work"
    exit $status
}

main
