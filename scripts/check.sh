#!/usr/bin/env bash
# Runs every check that needs no broker.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$here"
# shellcheck source=scripts/steps.sh
. scripts/steps.sh

usage() {
    cat <<'TEXT'
usage: scripts/check.sh

Runs every check that needs no broker: formats, lints, dependencies, architecture, unit tests and doc tests. It takes less
than a minute when everything is built, and stops at the first step that fails. scripts/test.sh runs these checks, except
those for other systems, and all others.

A step is SKIPPED where its tool is missing: shellcheck, cargo-deny and its advisories, the Rust that Cargo.toml declares,
Rust's targets for Windows and macOS.
PROPTEST_CASES sets how many cases each property test tries (default 256).

Exit: 0 all passed, 1 a step failed, 2 usage, 69 a tool is missing.
TEXT
}

# Builds nothing.
static_checks() {
    step "formats" cargo fmt --all --check
    step_if shellcheck "shell scripts" shellcheck scripts/*.sh tests/*.sh packaging/prerm .ci/run
    step "no async runtime, no sleep" no_async_runtime
    step_if cargo-deny "dependencies" cargo deny --offline check bans licenses sources
    step_if cargo-deny "security advisories" advisories
}

compiled_checks() {
    step "unit tests" cargo test --locked --lib
    step "doc tests" cargo test --locked --doc
    step "architecture" cargo test --locked --test architecture
    step "bench, the program" the_benchmarks
    step "rustdoc" nice -n 19 env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
}

# These are nice to steps that wait for a broker beside them.
lints() {
    step "clippy" nice -n 19 cargo clippy --locked --all-targets -- -D warnings
}

features() {
    step "clippy, features" other_features
}

# In a target folder of its own, so that no other lane waits for the lock of this one.
features_and_systems() {
    local -x CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/features
    features
    step "library on Windows" library_on x86_64-pc-windows-gnu
    step "library on macOS" library_on aarch64-apple-darwin
}

# In one lane, because cargo locks the target folder.
cargo_lane() {
    compiled_checks
    lints
    step "oldest Rust" oldest_rust
}

# In the dependencies as a user gets them, and in the library.
no_async_runtime() {
    ! cargo tree --locked --edges normal | grep -E ' (tokio|async-std|async-executor|smol|futures-executor) v' &&
        ! grep -rn 'thread::sleep' src
}

# Uses the database that `cargo deny fetch` has downloaded, so that the check needs no network.
advisories() {
    compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/advisory-db-*" >/dev/null ||
        skip "no advisories are here: cargo deny fetch" || return
    cargo deny --offline check advisories
}

# None, each feature and each pair. The step clippy checks all at once. `cli` includes `command` and `signals`.
other_features() {
    local features
    for features in "" tls command json signals cli tls,{command,json,signals,cli} command,{json,signals} json,{signals,cli}; do
        nice -n 19 cargo clippy --locked --lib --bins --no-default-features --features "$features" -- -D warnings
    done
}

# Without the async clients, which take minutes to compile: scripts/bench.sh does that.
the_benchmarks() {
    nice -n 19 cargo test --locked --package rabbit-work-bench &&
        nice -n 19 cargo clippy --locked --package rabbit-work-bench --all-targets -- -D warnings
}

# Compiles with the toolchain that Cargo.toml declares.
oldest_rust() {
    local version
    version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    has_toolchain "$version" || skip "Rust $version is not installed: rustup toolchain install $version" || return
    nice -n 19 cargo "+$version" check --locked --lib --bins
}

# Nothing is linked, so that `true` is compiler enough for what dependencies have in C.
library_on() {
    local target=$1 name=${1//-/_}
    has_target "$target" || skip "the target is not installed: rustup target add $target" || return
    env "CC_$name=true" "AR_$name=true" nice -n 19 \
        cargo check --locked --lib --no-default-features --target "$target"
}

has_target() {
    command -v rustup >/dev/null && rustup target list --installed | grep -qx "$1"
}

# Asks for the list, because rustup downloads a toolchain that is named and missing.
has_toolchain() {
    command -v rustup >/dev/null && rustup toolchain list | grep -q "^$1\(-\| \|\$\)"
}

need_tools() {
    command -v cargo >/dev/null || missing "cargo" "install Rust: https://rustup.rs"
    cargo fmt --version >/dev/null 2>&1 || missing "rustfmt" "rustup component add rustfmt (Debian, Ubuntu: apt-get install rustfmt)"
    need_c_compiler
    cargo clippy --version >/dev/null 2>&1 || missing "clippy" "rustup component add clippy (Debian, Ubuntu: apt-get install rust-clippy)"
}

# Rust links with it, and ring, below TLS, has parts in C.
need_c_compiler() {
    ! command -v cc >/dev/null || return 0
    local packages="gcc libc6-dev" as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
        missing "a C compiler" "Debian, Ubuntu: apt-get install $packages"
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

finish() {
    local status=$?
    trap '' HUP INT TERM
    end_lanes
    print_table
    exit $status
}

main() {
    [ $# -eq 0 ] || { usage; [ "$*" = --help ] && exit 0 || exit 2; }
    need_tools
    begin_steps
    trap finish EXIT
    side_by_side static_checks cargo_lane features_and_systems
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"
