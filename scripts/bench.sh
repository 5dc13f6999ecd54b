#!/usr/bin/env bash
# Measures rabbit-work beside its peers, in one run on one machine.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

usage() {
    cat <<'TEXT'
usage: scripts/bench.sh [OPTION...] [GROUP...]

Measures against a private RabbitMQ, which it starts and removes. Every contender does the same work
in the same run, in turn: five rounds after a warm-up, or fewer where no target depends on it or a
round takes minutes. A ratio is the median of the ratios of the rounds. All of it takes about 40
minutes, and nothing else should run meanwhile. The seconds mean nothing on another machine.

GROUPs, or the beginning of the name of a work, such as consume/prefetch-1-; default: all
  publish   libraries publish, with a window of 1000 and one by one
  lines     each line of a file becomes a task: producer --lines
  consume   libraries take and ack, with a prefetch of 1 to 1000
  outcomes  what it costs that a batch waits for the outcome of each task
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
  --csv FILE           write what was measured to FILE; what it has of other works stays
  --record             measure everything, write it to docs/bench/results.csv, and renew the charts
                       there and the tables of docs/performance.md
  --report             only renew the charts and tables from docs/bench/results.csv

RW_BIN set: what is in that folder is measured, and nothing is built.
Linux only. Exit: 0 measured, 1 a contender failed, 2 usage, 69 no broker to be had.
TEXT
}

main() {
    options=() groups=() quick='' record=''
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --quick) quick=yes; options+=("$1"); shift ;;
            --rounds | --contenders | --csv) need_value "$@"; options+=("$1" "$2"); shift 2 ;;
            --record) record=yes; shift ;;
            --report) record=only; shift ;;
            -*) usage_error "unknown option $1" ;;
            publish* | lines* | consume* | outcomes* | latency* | cold* | command* | failures* | growth* | prefetch* | fairness*)
                groups+=("$1"); shift ;;
            *) usage_error "no group '$1'" ;;
        esac
    done
    # One commit and one machine, which the page names, for all numbers.
    [ -z "$record" ] || [ $((${#groups[@]} + ${#options[@]})) -eq 0 ] ||
        usage_error "--record and --report take no group and no other option"
    cd "$here"
    unset AMQP_URL
    build
    [ "$record" = only ] || measure
    [ -z "$record" ] || "$bin/bench" report docs/bench/results.csv docs/performance.md
}

measure() {
    scratch=$(mktemp -d)
    trap 'broker stop >&2 || true; rm -rf "$scratch"' EXIT
    broker start >&2
    AMQP_URL=$(broker url)
    export AMQP_URL RUST_LOG=error
    options+=(--programs "$bin" --here "$here/bench" --scratch "$scratch")
    options+=(--broker "$(broker pid)")
    [ -n "$quick" ] || find_others
    if [ -n "$record" ]; then
        mkdir -p docs/bench
        options+=(--csv docs/bench/results.csv)
        describe
        # If the run ends early, nothing of another commit is left under this one. Git has the last record.
        rm -f docs/bench/results.csv
    fi
    "$bin/bench" run "${options[@]}" ${groups[@]+"${groups[@]}"}
}

# What the results say of the machine and of what was measured.
describe() {
    say "$(date -u +%Y-%m-%d), commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
    say "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(getconf _NPROCESSORS_ONLN) processors, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), $(uname -sr)"
    say "RabbitMQ $(broker ctl version | tail -n 1), Erlang $(broker ctl eval 'erlang:system_info(otp_release).' | tr -d '"' | tail -n 1), on the same machine, over the loopback"
    say "$(rustc --version | cut -d ' ' -f 1-2), release build; $(versions)"
    say "durable classic queues, persistent tasks; bodies of 16 bytes unless stated otherwise"
}

say() {
    options+=(--machine "$1")
}

versions() {
    list_versions | tr -d '\n'
}

list_versions() {
    awk '/^name = "(amiquip|lapin|amqprs)"/ { name = $3 } /^version/ && name { print name, $3; name = "" }' Cargo.lock |
        tr -d '"' | paste -s -d , | sed 's/,/, /g'
    "$here/target/pika/bin/python" -c 'import pika; print(", pika", pika.__version__)' 2>/dev/null || true
    dpkg-query -W -f ', ${Package} ${Version}' amqp-tools 2>/dev/null || true
}

broker() {
    scripts/broker.sh --dir "$scratch/broker" "$@"
}

build() {
    bin=${RW_BIN:-}
    if [ -z "$bin" ]; then
        ! need_commands || cargo build --locked --release --bins
        cargo build --locked --release --package rabbit-work-bench --features peers
        bin=${CARGO_TARGET_DIR:-$here/target}/release
    fi
}

# Whether producer or worker are measured: a developer of the library does not wait for them.
need_commands() {
    [ "$record" != only ] || return 1
    [ ${#groups[@]} -gt 0 ] || return 0
    local group
    for group in "${groups[@]}"; do
        case $group in publish* | consume* | outcomes* | latency* | failures* | growth* | prefetch* | fairness*) ;; *) return 0 ;; esac
    done
    return 1
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
