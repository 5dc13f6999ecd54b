#!/usr/bin/env bash
# Measures rabbit-work side by side with what it is compared to, in one run on one machine, and
# prints ratios. The seconds beside them mean nothing on another machine.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tasks=2000 large_tasks=200 failing_tasks=100000 rounds=3

usage() {
    cat <<'TEXT'
usage: scripts/bench.sh [--quick]

Against a private RabbitMQ, which it starts and removes:
  * `worker --threads N -- true` and `xargs -P N -n 1 true`, for tasks of 100 bytes;
  * `worker --threads N -- sh -c 'cat >/dev/null'` for tasks of 1 MiB, and the same command under
    xargs with a file of 1 MiB as its input;
  * beside each, the same under `bench/bare.rs`: what no worker on amiquip can do without; and
    the broker's share of the processors' time while the worker ran;
  * 100,000 tasks without failures, and with every third failing twice and every hundredth always.

  --quick    a tenth of the tasks: whether it works, not how fast

RABBIT_WORK_BIN set: what is in that folder is measured, and nothing is built.

The commands three times in turn; their seconds are sums. A ratio above 1 says that the worker was
faster. Nothing else should run meanwhile. The locale counts: in C, xargs forks faster. Linux only.
Exit: 0 measured, 1 a task was not done, 2 usage, 69 no broker to be had.
TEXT
}

main() {
    case "$*" in
        '') ;;
        --quick) tasks=200 large_tasks=20 failing_tasks=10000 rounds=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "bench: cannot do '$*'" >&2; usage >&2; exit 2 ;;
    esac
    cd "$here"
    unset AMQP_URL
    bin=${RABBIT_WORK_BIN:-}
    if [ -z "$bin" ]; then
        cargo build --locked --release --bins --example failing --example bare
        bin=${CARGO_TARGET_DIR:-$here/target}/release
    fi
    scratch=$(mktemp -d)
    trap 'scripts/broker.sh --dir "$scratch/broker" stop >&2 || true; rm -rf "$scratch"' EXIT
    scripts/broker.sh --dir "$scratch/broker" start >&2
    AMQP_URL=$(scripts/broker.sh --dir "$scratch/broker" url)
    export AMQP_URL RUST_LOG=error
    broker=$(scripts/broker.sh --dir "$scratch/broker" pid)
    processors=$(getconf _NPROCESSORS_ONLN)
    echo "$(uname -sm), $processors processors, locale ${LC_ALL:-${LC_CTYPE:-${LANG:-C}}}, RabbitMQ $(scripts/broker.sh --dir "$scratch/broker" ctl version | tail -n 1)"
    measure "100 bytes" small 1 >/dev/null # A broker is slow in its first seconds.
    local threads
    for threads in 1 2 4; do measure "100 bytes" small "$threads"; done
    for threads in 1 2 4; do measure "1 MiB" large "$threads"; done
    "$bin/examples/failing" "$failing_tasks"
}

# What a kind of task takes in each of the rounds, and the ratio of the sums.
measure() {
    for ((round = 0; round < rounds; round++)); do
        "$2" "$3"
    done | paste - - - - | awk -v what="$1, $3 threads" -v processors="$processors" '
        { xargs += $1 / 1e6; bare += $2 / 1e6; worker += $3 / 1e6; broker += $4 / 1e6 }
        END {
            printf "%s: xargs %.2f s, bare %.2f s, worker %.2f s: ratio %.2f to xargs, %.2f to bare;",
                what, xargs, bare, worker, xargs / worker, bare / worker
            printf " the broker had %.0f %% of the processors\n", 100 * broker / worker / processors
        }'
}

small() {
    head -c 100 /dev/zero | tr '\0' x >"$scratch/task"
    echo >>"$scratch/task"
    for ((i = 0; i < tasks; i++)); do cat "$scratch/task"; done >"$scratch/tasks"
    fill small --lines "$scratch/tasks"
    microseconds xargs -P "$1" -n 1 true <"$scratch/tasks"
    microseconds "$bin/examples/bare" small.bare "$1" "$tasks" true
    microseconds_of_both "$bin/worker" --queue small --threads "$1" --max-tasks "$tasks" -- true
}

large() {
    head -c 1048576 /dev/urandom >"$scratch/large"
    fill large --body-file "$scratch/large" --repeat "$large_tasks"
    local read_it="cat <'$scratch/large' >/dev/null"
    seq "$large_tasks" | microseconds xargs -P "$1" -n 1 sh -c "$read_it"
    microseconds "$bin/examples/bare" large.bare "$1" "$large_tasks" sh -c "$read_it"
    microseconds_of_both "$bin/worker" --queue large --threads "$1" --max-tasks "$large_tasks" -- sh -c 'cat >/dev/null'
}

# Both queues before anything is measured: a broker is not done with writing when it has confirmed.
fill() {
    local queue=$1
    shift
    "$bin/producer" --queue "$queue.bare" "$@" --json >/dev/null
    "$bin/producer" --queue "$queue" "$@" --json >/dev/null
}

# The time that a command takes; what it says goes to standard error.
microseconds() {
    local begun=${EPOCHREALTIME//[!0-9]/}
    "$@" >&2
    echo $((${EPOCHREALTIME//[!0-9]/} - begun))
}

# The same of a worker, and what the broker had of the processors meanwhile.
microseconds_of_both() {
    local before
    before=$(ticks)
    microseconds "$@"
    echo $((($(ticks) - before) * 1000000 / $(getconf CLK_TCK)))
}

ticks() {
    awk '{ print $14 + $15 }' "/proc/$broker/stat"
}

main "$@"
