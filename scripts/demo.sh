#!/usr/bin/env bash
# Demonstrates how workers share a queue. Runs the real commands against a broker, draws what each
# worker did, and checks every claim that it makes.
set -eu -o pipefail
export LC_ALL=C

PARTS="round_robin fairness killed stopped"
# The longest wait for one step, in seconds.
PATIENCE=60

main() {
    settle_arguments "$@"
    prepare
    build
    start_broker
    if [ $pace = fast ]; then
        # The longest parts start first.
        for part in fairness stopped killed round_robin; do "start_$part"; done
        for part in $PARTS; do "explain_$part"; "show_$part"; done
    else
        for part in $PARTS; do "explain_$part"; "start_$part"; "show_$part"; done
    fi
    restart_part
    conclude
}

usage() {
    cat <<'TEXT'
usage: scripts/demo.sh [--fast]

Shows how workers share a RabbitMQ queue: round-robin, fair dispatch, a worker that dies, a worker
that stops, and a restart of the broker. Takes less than a minute after the build. Starts a private
broker with scripts/broker.sh and removes it at the end. Needs only Rust and a shell.

  --fast    shorter tasks, and the first four parts at the same time, for the tests

AMQP_URL         use this broker, with queues of the demo's own, and do not restart it
RW_BIN           use the commands in this folder, and build nothing
NO_COLOR         use no colours
Exit: 0 every claim held, 1 a claim did not hold, 2 usage, 69 no broker.
TEXT
}

settle_arguments() {
    pace=slow
    case "$*" in
        '') ;;
        --fast) pace=fast ;;
        -h | --help) usage; exit 0 ;;
        *) echo "demo: unknown argument '$*'; usage: scripts/demo.sh [--fast]" >&2; exit 2 ;;
    esac
    # A dot is a second of work. Kills and stops happen after so many seconds of a long task.
    if [ $pace = slow ]; then
        equal_tasks=9 uneven_tasks=8 heavy=... light=. long=... short=.. after=1.5
    else
        equal_tasks=6 uneven_tasks=4 heavy=.. light=. long=.. short=. after=0.8
    fi
}

# ---- 1: round-robin ----

explain_round_robin() {
    title "Round-robin: workers take turns" \
        "Three workers consume from one queue. Then $equal_tasks equal tasks arrive. Without a" \
        "prefetch limit RabbitMQ sends all tasks at once, to each worker in turn."
    shell "worker --prefetch 0" "in three shells"
    shell "producer --lines" "'1 .', '2 .', ...: each dot is a second"
}

start_round_robin() {
    start_worker round_robin 1 --prefetch 0
    start_worker round_robin 2 --prefetch 0
    start_worker round_robin 3 --prefetch 0
    tasks "$equal_tasks" . . | publish round_robin
}

show_round_robin() {
    finish round_robin "$equal_tasks"
    draw round_robin
    local hands="1 4 7, 2 5 8, 3 6 9"
    [ "$equal_tasks" = 9 ] || hands="1 4, 2 5, 3 6"
    claim "each worker got every third task: $hands" equal "$hands" "$(hands round_robin)"
}

# ---- 2: fair dispatch ----

explain_fairness() {
    title "Fair dispatch: no worker is idle while tasks wait" \
        "Odd tasks are heavy (${#heavy} s), even tasks are light (${#light} s). Round-robin gives all" \
        "heavy tasks to one of two workers. With --prefetch 1 a worker gets its next" \
        "task when its last one is done. Both run at the same time, on two queues:"
    shell "worker --prefetch 0" "in two shells: no limit"
    shell "worker --prefetch 1" "in two more shells: the default"
}

start_fairness() {
    start_worker unfair 1 --prefetch 0
    start_worker unfair 2 --prefetch 0
    start_worker fair 1 --prefetch 1
    start_worker fair 2 --prefetch 1
    tasks "$uneven_tasks" "$heavy" "$light" | publish unfair
    tasks "$uneven_tasks" "$heavy" "$light" | publish fair
}

show_fairness() {
    finish fair "$uneven_tasks"
    finish unfair "$uneven_tasks"
    local unfair fair scale each
    unfair=$(makespan unfair)
    fair=$(makespan fair)
    scale=$(greater "$unfair" "$fair")
    echo
    say "Without a prefetch limit:"
    draw unfair "$scale"
    say "With --prefetch 1, on the same scale:"
    draw fair "$scale"
    say "Time for all tasks:"
    compare "no limit" "$unfair" "prefetch 1" "$fair"
    local hands="1 3 5 7, 2 4 6 8"
    [ "$uneven_tasks" = 8 ] || hands="1 3, 2 4"
    claim "without a limit, one worker had all heavy tasks: $hands" \
        equal "$hands" "$(hands unfair)"
    each=$((uneven_tasks * (${#heavy} + ${#light}) / 4))
    claim "with --prefetch 1, each worker had the same work: $each s" \
        equal "$each $each" "$(loads fair)"
    claim "fair dispatch took $fair s instead of $unfair s" \
        sooner "$fair" "$unfair"
}

# ---- 3: kill -9 ----

explain_killed() {
    title "A worker dies: another one runs its task" \
        "A worker acks a task after the work. Here kill -9 ends a worker during task 1." \
        "RabbitMQ has no ack for this task and gives it to the other worker."
    shell "worker" "in two shells"
    shell "kill -9" "the worker that runs task 1"
}

start_killed() {
    start_worker killed 1
    start_worker killed 2
    tasks 2 "$long" "$short" | publish killed
    victim=$(await_runner killed 1)
    sleep "$after"
    strike killed "$victim" KILL "kill -9"
}

show_killed() {
    finish killed 2
    draw killed
    local other=$((3 - victim))
    claim "worker $victim was killed during task 1" equal "1" "$(runs killed "$victim" cut)"
    claim "worker $other ran task 1 again" equal "1" "$(runs killed "$other" again)"
    claim "both tasks were done once" equal "1 2" "$(done_in killed)"
}

# ---- 4: Ctrl-C ----

explain_stopped() {
    title "Ctrl-C: finish the running task, requeue the rest" \
        "A worker holds four tasks and runs the first one. After Ctrl-C it requeues the" \
        "other three at once, finishes the first one and exits. A second worker runs" \
        "the three."
    shell "worker --prefetch 4" "then Ctrl-C"
    shell "worker" "in a second shell, a moment later"
}

start_stopped() {
    start_worker stopped 1 --prefetch 4
    { echo "1 $long"; echo "2 ."; echo "3 ."; echo "4 ."; } | publish stopped
    await_runner stopped 1 >/dev/null
    start_worker stopped 2
    sleep "$after"
    strike stopped 1 INT "Ctrl-C"
}

show_stopped() {
    end_of stopped 1 # before finish sends a second signal
    finish stopped 4
    draw stopped
    claim "worker 1 finished task 1 and exited with 0" \
        equal "1, status 0" "$(runs stopped 1 "done"), status $(cat "$scratch/stopped/status.1")"
    claim "worker 1 requeued tasks 2 3 4" \
        equal "2 3 4" "$(runs stopped 1 returned)"
    claim "worker 2 did tasks 2 3 4" \
        equal "2 3 4" "$(runs stopped 2 "done")"
}

# ---- 5: a restart of the broker ----

restart_part() {
    title "The broker restarts: the queue keeps its tasks" \
        "The queue is durable, the tasks are persistent, and the broker has confirmed" \
        "each one. RabbitMQ stops with four tasks on the queue, and starts again."
    if [ "$private" = no ]; then
        say "Skipped: the demo does not restart the broker of AMQP_URL."
        return
    fi
    shell "producer --lines" "four tasks, no worker yet"
    shell "scripts/broker.sh stop --keep" "then scripts/broker.sh start"
    shell "worker" "in two shells"
    tasks 4 . . | publish durable
    local before after down up
    before=$(broker_pid)
    down=$(now)
    hint "restarting RabbitMQ ..."
    attend broker stop --keep 2>"$scratch/broker.log" ||
        give_up "the broker did not stop: $(cat "$scratch/broker.log")"
    attend broker start >/dev/null || give_up "the broker did not start again"
    up=$(now)
    hint
    after=$(broker_pid)
    start_worker durable 1
    start_worker durable 2
    finish durable 4
    add_broker_lane durable "$down" "$up"
    draw durable
    if [ -n "$before" ]; then
        claim "RabbitMQ is a new process" differ "$before" "$after"
    fi
    claim "all four tasks were done once" equal "1 2 3 4" "$(done_in durable)"
}

# Empty for a container on another system, whose process id is unknown.
broker_pid() {
    (broker pid) 2>/dev/null || true
}

# Draws the broker from two seconds before its stop to the end of the last task.
add_broker_lane() {
    local table=$scratch/$1/table
    mv "$table" "$table.workers"
    awk -v down="$2" -v up="$3" '
        BEGIN { FS = OFS = "\t" }
        $4 + 0 > last { last = $4 + 0 }
        { row[NR] = $0 }
        END {
            printf "broker\tup\t%.3f\t%s\tdone\n", down - 2, down
            printf "broker\tdown\t%s\t%s\tpause\n", down, up
            printf "broker\tup\t%s\t%.3f\tdone\n", up, last
            printf "broker\tstopped with 4 tasks on the queue\t%s\t%s\tmark\n", down, down
            for (i = 1; i <= NR; i++) print row[i]
        }' "$table.workers" >"$table"
}

# ---- setting up and ending ----

prepare() {
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
    failures=0 shown=0 attended='' private=yes terminal=no bold='' green='' red='' plain='' colour=0
    if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
        terminal=yes
    fi
    if [ $terminal = yes ] && [ -z "${NO_COLOR:-}" ]; then
        colour=1 bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
    fi
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/rabbit-work-demo.XXXXXX")
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# Cargo says where it puts the commands, because many settings can change that.
build() {
    if [ -n "${RW_BIN:-}" ]; then
        producer=$RW_BIN/producer
        worker=$RW_BIN/worker
        return
    fi
    command -v cargo >/dev/null || give_up "cargo does not exist; install Rust: https://rustup.rs"
    say "Building the commands; the first time takes a minute or two ..."
    # Without TLS: the build is shorter.
    attend cargo build --manifest-path "$root/Cargo.toml" --release --bins --quiet \
        --no-default-features --features cli \
        --message-format json-render-diagnostics >"$scratch/built" 2>"$scratch/build.log" ||
        give_up "the commands could not be built: $(cat "$scratch/build.log")"
    producer=$(executable producer)
    worker=$(executable worker)
}

executable() {
    sed -n 's/.*"executable":"\([^"]*\/'"$1"'\)".*/\1/p' "$scratch/built" | head -n 1
}

start_broker() {
    if [ -n "${AMQP_URL:-}" ]; then
        private=no
    else
        say "Starting a RabbitMQ ..."
    fi
    local status=0
    attend broker start >"$scratch/broker.url" || status=$?
    [ $status = 0 ] || exit $status
    say "RabbitMQ: $(sed 's#://.*@#://#' "$scratch/broker.url")"
    url=$(broker url)
    # Unique, because other programs may use the broker.
    queues="rabbit-work-demo-$(date +%Y%m%d%H%M%S)-$$-$RANDOM"
}

broker() {
    exec "$root/scripts/broker.sh" --dir "$scratch/broker" "$@"
}

# Runs a long command in the background, so that a signal to the demo works at once.
attend() {
    "$@" &
    attended=$!
    local status=0
    wait "$attended" || status=$?
    attended=
    return $status
}

conclude() {
    echo
    if [ $failures = 0 ]; then
        say "${bold}All claims held.${plain}"
    else
        say "${red}$failures claims did not hold.${plain}"
        exit 1
    fi
}

clean_up() {
    local status=$?
    trap '' HUP INT TERM
    [ "$private" = yes ] || [ ! -e "$scratch/producer.log" ] ||
        say "The queues $queues.* remain on your broker." || true
    {
        if [ -n "$attended" ]; then
            kill -TERM "$attended"
            wait "$attended"
        fi
        # Only children of this shell that still run.
        for pid in $(jobs -pr); do kill -KILL "$pid"; done
        wait
        [ ! -d "$scratch/broker" ] || (broker stop)
        rm -rf "$scratch"
    } >/dev/null 2>&1 || true
    exit $status
}

# give_up WHY [STATUS]: exits with 69 if STATUS is 69 (no broker), else with 1.
give_up() {
    say "${red}FAILED${plain}  $1" >&2
    tail -n 3 "$scratch"/*/log.* >&2 2>/dev/null || true
    [ "${2:-1}" != 69 ] || exit 69
    exit 1
}

# ---- workers and tasks ----

# start_worker PART NUMBER OPTION...: returns when the worker consumes.
start_worker() {
    local part=$1 number=$2 dir=$scratch/$1
    shift 2
    mkdir -p "$dir"
    AMQP_URL=$url RUST_LOG=info "$worker" --queue "$queues.$part" --print --threads 1 \
        --no-reconnect --events "$dir/events.$number" "$@" \
        </dev/null >"$dir/out.$number" 2>"$dir/log.$number" &
    echo $! >"$dir/pid.$number"
    await "worker $number does not consume" consumes "$!" "$dir/log.$number"
}

# consumes PID LOG
consumes() {
    local status=0
    if ! kill -0 "$1" 2>/dev/null; then
        wait "$1" || status=$?
        give_up "a worker exited before it consumed" $status
    fi
    lines 1 "consuming from" "$2"
}

# tasks COUNT ODD EVEN: one line for each task, with its number and its dots.
tasks() {
    local number
    for ((number = 1; number <= $1; number++)); do
        if ((number % 2)); then echo "$number $2"; else echo "$number $3"; fi
    done
}

# One producer keeps the order. It exits when all tasks are confirmed.
publish() {
    AMQP_URL=$url RUST_LOG=warn "$producer" --queue "$queues.$1" --lines \
        >/dev/null 2>"$scratch/producer.log" ||
        give_up "the tasks were not published: $(cat "$scratch/producer.log")"
}

# await_runner PART TASK: the number of the worker that runs this task.
await_runner() {
    local out
    await "task $2 was not started" lines 1 "[x] Received '$2 " "$scratch/$1"/out.*
    out=$(grep -lF "[x] Received '$2 " "$scratch/$1"/out.*)
    echo "${out##*.}"
}

# strike PART NUMBER SIGNAL WORDS: signals a worker, and notes when.
strike() {
    local pid
    pid=$(cat "$scratch/$1/pid.$2")
    echo "$2 $(now) $4" >>"$scratch/$1/marks"
    # Without stderr, on which bash would report the killed job.
    {
        kill "-$3" "$pid"
        [ "$3" != KILL ] || end_of "$1" "$2"
    } 2>/dev/null
}

# finish PART COUNT: waits until COUNT tasks are done, stops the workers, tabulates their runs.
finish() {
    local dir=$scratch/$1 pid_file
    await "some tasks of this part were not done" are_done "$2" "$dir"/events.*
    hint
    for pid_file in "$dir"/pid.*; do
        kill -TERM "$(cat "$pid_file")" 2>/dev/null || true
    done
    for pid_file in "$dir"/pid.*; do
        end_of "$1" "${pid_file##*.}"
    done
    touch "$dir/marks"
    awk -f "$root/scripts/demo/runs.awk" "$dir/marks" "$dir"/out.* "$dir"/events.* >"$dir/table"
}

are_done() {
    local all=$1 count
    shift
    count=$(grep -hF '"event":"done"' "$@" | grep -c '')
    hint "$count of $all tasks done ..."
    [ "$count" -ge "$all" ]
}

# Waits for a worker's end and keeps its exit status.
end_of() {
    local dir=$scratch/$1 status=0
    [ -e "$dir/pid.$2" ] || return 0
    wait "$(cat "$dir/pid.$2")" 2>/dev/null || status=$?
    echo $status >"$dir/status.$2"
    rm "$dir/pid.$2"
}

# await COMPLAINT COMMAND...: until the command succeeds.
await() {
    local complaint=$1 deadline=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || give_up "$complaint"
        sleep 0.05
    done
}

# lines COUNT TEXT FILE...: at least COUNT lines contain TEXT.
lines() {
    local count=$1 text=$2
    shift 2
    [ "$(cat "$@" 2>/dev/null | grep -cF -- "$text")" -ge "$count" ]
}

# Seconds since 1970 with their fraction, also in the bash 3.2 of macOS.
now() {
    if [ -n "${EPOCHREALTIME:-}" ]; then
        echo "$EPOCHREALTIME"
    else
        perl -MTime::HiRes=time -e 'printf "%.3f\n", time' 2>/dev/null || date +%s
    fi
}

# ---- questions to the tables ----

# runs PART WORKER HOW: the worker's tasks that ended like that.
runs() {
    awk -F '\t' -v lane="worker $2" -v how="$3" '$1 == lane && $5 == how { print $2 }' \
        "$scratch/$1/table" | in_order
}

done_in() {
    awk -F '\t' '$1 ~ /^worker/ && ($5 == "done" || $5 == "again") { print $2 }' "$scratch/$1/table" | in_order
}

in_order() {
    sort -n | paste -s -d ' ' -
}

# The tasks of each worker, sorted by their first task.
hands() {
    awk -F '\t' '
        $5 == "done" { hand[$1] = hand[$1] (hand[$1] == "" ? "" : " ") $2 }
        END { for (lane in hand) print hand[lane] }' "$scratch/$1/table" | sort -n | paste -s -d , - | sed 's/,/, /g'
}

# Seconds of work of each worker.
loads() {
    awk -F '\t' -v heavy=${#heavy} -v light=${#light} '
        $5 == "done" { load[$1] += $2 % 2 ? heavy : light }
        END { for (lane in load) print load[lane] }' "$scratch/$1/table" | in_order
}

makespan() {
    awk -F '\t' '
        NR == 1 || $3 < first { first = $3 }
        $4 > last { last = $4 }
        END { printf "%.1f\n", last - first }' "$scratch/$1/table"
}

greater() {
    awk -v a="$1" -v b="$2" 'BEGIN { print (a > b ? a : b) }'
}

# ---- claims ----

# claim SENTENCE TEST...: prints whether the test passed.
claim() {
    local sentence=$1
    shift
    if "$@"; then
        say "${green}ok${plain}      $sentence"
    else
        say "${red}FAILED${plain}  $sentence ($complaint)"
        failures=$((failures + 1))
    fi
}

equal() {
    complaint="got: $2"
    [ "$1" = "$2" ]
}

differ() {
    complaint="still $1"
    [ "$1" != "$2" ]
}

sooner() {
    complaint="it was not"
    awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'
}

# ---- output and drawing ----

say() {
    printf '  %s\n' "$@"
}

# hint [WORDS]: on a terminal, shows the progress until the next hint.
hint() {
    [ "$terminal" = no ] || printf '\r\e[K%s' "${1:+  $1}"
}

title() {
    shown=$((shown + 1))
    printf '\n%s%s. %s%s\n\n' "$bold" $shown "$1" "$plain"
    shift
    say "$@"
    echo
}

shell() {
    printf '    $ %-30s# %s\n' "$1" "$2"
}

# draw PART [SECONDS]: draws its lanes, on an axis of at least SECONDS.
draw() {
    echo
    lanes "${2:-0}" <"$scratch/$1/table"
    echo
}

# compare LABEL SECONDS LABEL SECONDS: draws both as bars.
compare() {
    echo
    printf '%s\t%s s\t0\t%s\tdone\n' "$1" "$2" "$2" "$3" "$4" "$4" | lanes 0
    echo
}

lanes() {
    awk -v span="$1" -v colour="$colour" -f "$root/scripts/demo/lanes.awk"
}

main "$@"
