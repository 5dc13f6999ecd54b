#!/usr/bin/env bash
# Measures rabbit-work beside its peers, in one run on one machine.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

usage() {
    cat <<'TEXT'
usage: scripts/bench.sh [OPTION...] [GROUP...]

Measures against a private RabbitMQ, which it starts and removes. Every contender does the same work
in the same run, in turn: five rounds after a warm-up. A ratio is the median of the ratios of the
rounds. Nothing else should run meanwhile. The seconds mean nothing on another machine.

GROUPs, or the beginning of the name of a work, such as consume/prefetch-1-; default: all
  publish   libraries publish, with a window of 1000 and one by one
  lines     each line of a file becomes a task: producer --lines
  consume   libraries take and ack, with a prefetch of 1 to 1000
  latency   from when a task was due to be published until the handler has it
  cold      one task, with all that a process costs
  command   a command for each task: worker and xargs -P
  failures  tasks that fail and come again
  growth    backlogs, threads and processes
  prefetch  a broker that is 1 to 50 ms away
  fairness  a slow and a quick worker on one queue

  --quick              a fraction of the tasks, one round: whether it works, not how fast
  --rounds N           rounds that count (default 5)
  --contenders A,B,... only these, such as raw,amiquip-nodelay,rabbit-work,lapin
  --csv FILE           write what was measured to FILE

RABBIT_WORK_BIN set: what is in that folder is measured, and nothing is built.
Linux only. Exit: 0 measured, 1 a contender failed, 2 usage, 69 no broker to be had.
TEXT
}

main() {
    options=() quick=
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --quick) quick=yes; options+=("$1"); shift ;;
            --rounds | --contenders | --csv) need_value "$@"; options+=("$1" "$2"); shift 2 ;;
            -*) usage_error "unknown option $1" ;;
            *) options+=("$1"); shift ;;
        esac
    done
    cd "$here"
    unset AMQP_URL
    build
    scratch=$(mktemp -d)
    trap 'scripts/broker.sh --dir "$scratch/broker" stop >&2 || true; rm -rf "$scratch"' EXIT
    scripts/broker.sh --dir "$scratch/broker" start >&2
    AMQP_URL=$(scripts/broker.sh --dir "$scratch/broker" url)
    export AMQP_URL RUST_LOG=error
    options+=(--programs "$bin" --here "$here/bench" --scratch "$scratch")
    options+=(--broker "$(scripts/broker.sh --dir "$scratch/broker" pid)")
    [ -n "$quick" ] || find_others
    "$bin/bench" run "${options[@]}"
}

build() {
    bin=${RABBIT_WORK_BIN:-}
    if [ -z "$bin" ]; then
        cargo build --locked --release --bins
        cargo build --locked --release --package rabbit-work-bench --features peers
        bin=${CARGO_TARGET_DIR:-$here/target}/release
    fi
}

# The contenders that are not built here. Those that cannot be had are left out.
find_others() {
    local venv=$here/target/pika
    if "$venv/bin/python" -c 'import pika' 2>/dev/null || install_pika; then
        options+=(--python "$venv/bin/python")
    else
        echo "bench: without pika: python3 -m venv and pip cannot install it" >&2
    fi
    command -v amqp-publish >/dev/null || install_amqp_tools ||
        echo "bench: without amqp-publish and amqp-consume (Debian, Ubuntu: apt-get install amqp-tools)" >&2
}

install_pika() {
    python3 -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/pip" install --quiet 'pika>=1.3,<2' >&2
}

install_amqp_tools() {
    [ "$(id -u)" = 0 ] || return 1
    command -v apt-get >/dev/null || return 1
    { apt-get update && apt-get install -y --no-install-recommends amqp-tools; } >/dev/null 2>&1
}

need_value() {
    [ $# -ge 2 ] || usage_error "$1 needs a value"
}

usage_error() {
    echo "bench: $1" >&2
    usage >&2
    exit 2
}

main "$@"
