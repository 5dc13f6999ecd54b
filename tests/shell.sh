#!/usr/bin/env bash
# Runs the recipes of docs/shell.md: each ```sh block as it stands, in the order they are in, with
# the commands of this checkout in PATH and a queue's broker in AMQP_URL. The ```text block that
# follows is what it has to print. The crontab is run as cron would, and the systemd unit started
# and stopped as systemd would.
# Usage: tests/shell.sh [FILE]; AMQP_URL or RW_TEST_URL names the broker, or else one is
# started.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PATIENCE=60 # seconds, for each block

main() {
    local recipes=${1:-$here/docs/shell.md}
    recipes=$(realpath "$recipes")
    work=$(mktemp -d)
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ -z "${RW_BIN:-}" ]; then
        cargo build --quiet --manifest-path "$here/Cargo.toml" --bins
    fi
    PATH=${RW_BIN:-${CARGO_TARGET_DIR:-$here/target}/debug}:$PATH
    AMQP_URL=${AMQP_URL:-${RW_TEST_URL:-}}
    if [ -z "$AMQP_URL" ]; then
        AMQP_URL=$("$here/scripts/broker.sh" --dir "$work/broker" start)
    fi
    export PATH AMQP_URL RUST_LOG=info
    mkdir "$work/blocks" "$work/run"
    split_blocks "$recipes"
    cd "$work/run"
    local block
    for block in "$work"/blocks/*.sh; do
        run_block "${block%.sh}"
    done
    check_crontab "$recipes"
    check_unit "$recipes"
    echo "shell: every recipe did what it shows"
}

split_blocks() {
    awk -v out="$work/blocks" '
        /^```/ && file != "" { close(file); file = ""; next }
        /^```sh$/ { name = sprintf("%s/%02d", out, ++count); file = name ".sh"; next }
        /^```text$/ { file = name ".expected"; next }
        /^```/ { file = "/dev/null"; next }
        file != "" { print > file }
    ' "$1"
    [ -e "$work/blocks/01.sh" ] || fail "$1 has no sh block"
}

# What a block prints goes to a file, since what it leaves in the background holds on to that.
run_block() {
    echo "shell: $(head -n 1 "$1.sh")"
    local status=0
    timeout --kill-after=5 "$PATIENCE" bash -eu -o pipefail "$1.sh" </dev/null >"$1.real" 2>"$1.log" ||
        status=$?
    if [ "$status" != 0 ]; then
        cat "$1.real" "$1.log" >&2
        fail "that block ended with $status"
    fi
    if [ -e "$1.expected" ] && ! diff -u "$1.expected" "$1.real" >&2; then
        cat "$1.log" >&2
        fail "that block printed something else"
    fi
}

# Its line, with what cron sets and what the block adds to that, and nothing else.
check_crontab() {
    echo "shell: crontab"
    awk '/^```crontab$/ { table = 1; next } /^```/ { table = 0 } table' "$1" |
        sed -e "s|/home/me/.cargo/bin|${PATH%%:*}|" -e "s|^AMQP_URL=.*|AMQP_URL=$AMQP_URL|" \
            -e "s|/srv/nightly|$PWD|" >"$work/crontab"
    # What the jobs of the first night leave behind must not keep the second one from its work.
    # shellcheck disable=SC2016 # It is for the job.
    printf '#!/bin/sh\necho "made: $(cat)" >>nightly.out\nsleep 600 &\necho $! >>left\n' >job
    local night
    for night in first second; do
        : >nightly.out
        as_cron || fail "the $night night under cron ended with $?: $(cat "$work/mail")"
        [ "$(grep -c '^made: ' nightly.out)" = 3 ] || fail "the $night night made $(cat nightly.out)"
        [ ! -s "$work/mail" ] || fail "the $night night is mailed: $(cat "$work/mail")"
    done
    local status=0
    (flock 8 && as_cron) 8<nightly.lock || status=$?
    [ "$status" = 75 ] || fail "beside another one a night ended with $status"
}

as_cron() {
    local variables command
    mapfile -t variables < <(grep -E '^[A-Z_]+=' "$work/crontab")
    command=$(sed -nE 's/^([^ =]+ +){5}//p' "$work/crontab")
    timeout --kill-after=5 "$PATIENCE" \
        env -i HOME="$work" LOGNAME=me SHELL=/bin/sh PATH=/usr/bin:/bin "${variables[@]}" \
        /bin/sh -c "$command" </dev/null >"$work/mail" 2>&1
}

# That it is the one of packaging/. Its command line, with what stands in for the paths of a system; SIGTERM to
# the worker alone.
check_unit() {
    echo "shell: rabbit-work@.service"
    awk '/^```ini$/ { unit = 1; next } /^```/ { unit = 0 } unit' "$1" >"$work/unit"
    diff "$work/unit" "$here/packaging/rabbit-work@.service" >&2 || fail "the unit is not that of packaging/"
    if command -v systemd-analyze >/dev/null; then
        systemd-analyze verify --man=no "$work/unit" 2>&1 | grep -i 'unknown' >&2 && fail "the unit is not understood"
    fi
    grep -q '^KillMode=mixed$' "$work/unit" || fail "the unit signals the commands too"
    local start
    start=$(sed -n 's/^ExecStart=//p' "$work/unit" | sed 's/%i/mail/g')
    printf '#!/bin/sh\necho begun >mail.begun; sleep 2; echo finished >mail.finished\n' >mail
    chmod +x mail
    start=${start//\/usr\/bin\//}
    start=${start//\/usr\/local\/lib\/rabbit-work\//./}
    producer --queue mail hello >/dev/null 2>&1
    # shellcheck disable=SC2086 # Its words are systemd's too.
    $start >"$work/unit.log" 2>&1 &
    local worker=$! waited=0
    until [ -e mail.begun ]; do
        [ $((waited += 1)) -le $((PATIENCE * 10)) ] || fail "the unit's worker did not begin"
        sleep 0.1
    done
    kill -TERM $worker
    wait $worker || { cat "$work/unit.log" >&2; fail "the unit's worker ended with $?"; }
    [ -e mail.finished ] || fail "the unit's worker did not let its command finish"
}

fail() {
    echo "shell: $1" >&2
    exit 1
}

finish() {
    local status=$?
    [ ! -e "$work/run/left" ] || xargs kill <"$work/run/left" || true
    if [ -d "$work/broker" ]; then
        "$here/scripts/broker.sh" --dir "$work/broker" stop >/dev/null 2>&1 || true
    fi
    rm -rf "$work"
    exit $status
}

main "$@"
