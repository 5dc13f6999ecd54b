#!/usr/bin/env bash
# Owns the list of what is checked without a broker.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$here"
# shellcheck source=scripts/steps.sh
. scripts/steps.sh

usage() {
    cat <<'TEXT'
usage: scripts/check.sh

Checks what needs no broker: formats, lints, the floors of the library, unit and doc tests. Takes less than a minute when
everything is built. It stops at the first step that fails. scripts/test.sh checks the rest, too.

Exit: 0 all passed, 1 a step failed, 2 usage, 69 a tool is missing.
TEXT
}

# What takes no build.
at_once() {
    step "formats" cargo fmt --all --check
    step_if shellcheck "shell scripts" shellcheck scripts/*.sh tests/*.sh .ci/run
    step "no async runtime, no sleep" plain_threads
}

# What builds is nice to what waits for a broker beside it.
built() {
    step "unit tests" cargo test --locked --lib --bins
    step "doc tests" cargo test --locked --doc
    step "architecture" cargo test --locked --test it architecture::
    step "clippy" nice cargo clippy --locked --all-targets -- -D warnings
    step "clippy, the library alone" nice cargo clippy --locked --lib --no-default-features -- -D warnings
    step "clippy, the commands without TLS" \
        nice cargo clippy --locked --bins --no-default-features --features cli -- -D warnings
    step "rustdoc" nice env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
}

# The dependencies as a user gets them, and what is ours.
plain_threads() {
    ! cargo tree --locked --edges normal | grep -E ' (tokio|async-std|async-executor|smol|futures-executor) v' &&
        ! grep -rn 'thread::sleep' src
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
    echo "${0##*/}: installing with apt-get: $packages" >&2
    # shellcheck disable=SC2086  # words
    $as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get -o DPkg::Lock::Timeout=120 update
        apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
    ' install $packages >&2 || missing "$packages" "apt-get could not install them"
}

missing() {
    echo "${0##*/}: $1 is missing; $2" >&2
    exit 69
}

checks() {
    at_once
    built
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    end_lanes
    tell_steps
    exit $status
}

main() {
    [ $# -eq 0 ] || { usage; [ "$*" = --help ] && exit 0 || exit 2; }
    need_tools
    begin_steps
    trap finish EXIT
    side_by_side checks
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"
