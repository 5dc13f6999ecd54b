#!/usr/bin/env bash
# Owns the list of everything that is checked, in the order of what fails soonest.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$here"

main() {
    [ $# -eq 0 ] || { usage; [ "$*" = --help ] && exit 0 || exit 2; }
    need_tools
    work=$(mktemp -d)
    export RABBIT_WORK_TEST_RUN=$work
    trap finish EXIT
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM

    step "formats" cargo fmt --all --check
    step_if shellcheck "shell scripts" shellcheck scripts/*.sh tests/*.sh .ci/run
    step "clippy" cargo clippy --locked --all-targets -- -D warnings
    step "clippy, the library alone" cargo clippy --locked --lib --no-default-features -- -D warnings
    step "clippy, the commands without TLS" \
        cargo clippy --locked --bins --no-default-features --features cli -- -D warnings
    step "no async runtime, no sleep" plain_threads
    step "rustdoc" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
    step "unit tests" cargo test --locked --lib --bins
    step "doc tests" cargo test --locked --doc
    step "examples" cargo build --locked --examples
    step "private broker" start_broker
    step "integration tests" with_broker cargo test --locked --test it
    step "broker script" tests/broker.sh
    step "demo" scripts/demo.sh --fast
    step "README" tests/readme.sh
    step "recipes" recipes
    step "Python's client" tests/pika.sh
    step "soak" scripts/soak.sh --minutes 1 --seed 7
    step "man pages and completions" tests/manual.sh
    step "benchmarks" scripts/bench.sh --quick
}

usage() {
    cat <<'TEXT'
usage: scripts/test.sh

Checks everything, step by step, and stops at the first step that fails. Needs Rust with rustfmt
and clippy; a RabbitMQ it gets through scripts/broker.sh, and takes away again.

AMQP_URL set: the integration tests, the demo and Python's client use that broker, with queues of
their own.
Exit: 0 all passed, 1 a step failed, 2 usage, 69 a tool is missing.
TEXT
}

need_tools() {
    command -v cargo >/dev/null || missing "cargo" "install Rust: https://rustup.rs"
    cargo fmt --version >/dev/null 2>&1 || missing "rustfmt" "rustup component add rustfmt (Debian, Ubuntu: apt-get install rustfmt)"
    need_openssl
    cargo clippy --version >/dev/null 2>&1 || missing "clippy" "rustup component add clippy (Debian, Ubuntu: apt-get install rust-clippy)"
}

# What native-tls and the tests' TLS front are built with.
need_openssl() {
    [ "$(uname)" = Linux ] || return 0
    ! { command -v cc && pkg-config --exists openssl; } >/dev/null 2>&1 || return 0
    local packages="gcc pkg-config libssl-dev" as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
        missing "a C compiler, pkg-config or OpenSSL's headers" "Debian, Ubuntu: apt-get install $packages"
    fi
    echo "test: installing with apt-get: $packages" >&2
    # shellcheck disable=SC2086  # words
    $as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get -o DPkg::Lock::Timeout=120 update
        apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
    ' install $packages >&2 || missing "$packages" "apt-get could not install them"
}

missing() {
    echo "test: $1 is missing; $2" >&2
    exit 69
}

# ---- steps ----

passed=0
failed=0
running=
# What a step ends with that cannot be done on this machine.
SKIPPED=77

# In a process group of its own, so that an interrupt can end all of it.
step() {
    local name=$1 begin=$SECONDS status=0
    shift
    echo "== $name"
    set -m
    "$@" </dev/null &
    running=$!
    set +m
    wait $running || status=$?
    running=
    if [ $status = $SKIPPED ]; then
        echo "-- $name: SKIPPED: it says why above"
        return
    fi
    if [ $status != 0 ]; then
        failed=1
        echo "test: FAILED: $name, with status $status after $((SECONDS - begin)) s: $*" >&2
        exit 1
    fi
    passed=$((passed + 1))
    echo "-- $name: passed in $((SECONDS - begin)) s"
}

step_if() {
    local tool=$1
    shift
    if command -v "$tool" >/dev/null; then
        step "$@"
    else
        echo "== $1"
        echo "-- $1: skipped, for $tool is not installed"
    fi
}

# The dependencies as a user gets them, and what is ours.
plain_threads() {
    ! cargo tree --locked --edges normal | grep -E ' (tokio|async-std|async-executor|smol|futures-executor) v' &&
        ! grep -rn 'thread::sleep' src
}

# ---- the broker of the integration tests ----

start_broker() {
    scripts/broker.sh --dir "$work/broker" start
}

with_broker() {
    local url=${AMQP_URL:-}
    [ -n "$url" ] || url=$(scripts/broker.sh --dir "$work/broker" url)
    RABBIT_WORK_TEST_URL=$url "$@"
}

# Their queues have names that others may have, too.
recipes() {
    unset AMQP_URL
    with_broker tests/shell.sh
}

# ---- the end ----

interrupted() {
    trap '' HUP INT TERM
    echo "test: interrupted: cleaning up" >&2
    if [ -n "$running" ]; then
        kill -TERM -- -"$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    fi
    tests/end.sh "$work"
    exit "$1"
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    scripts/broker.sh --dir "$work/broker" stop 2>/dev/null || true
    rm -rf "$work"
    echo "$passed passed, $failed failed"
    exit $status
}

main "$@"
