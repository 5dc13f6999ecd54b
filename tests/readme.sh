#!/usr/bin/env bash
# Runs README.md as a newcomer would, in a copy of the checkout: each ```sh block as it stands, in
# a shell of its own, in the README's order. The ```text block that follows is what it has to
# print, but for times and ports. A block whose output shows ^C goes on while the next one runs,
# and then gets the Ctrl-C.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PATIENCE=60 # seconds

main() {
    work=$(mktemp -d)
    work=$(cd "$work" && pwd -P)
    waiting=''
    group=''
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    settle_in
    split_blocks
    local block
    for block in "$work"/blocks/*.sh; do
        run_block "${block%.sh}"
    done
    check_options
    check_examples
    check_management
    echo "readme: all commands did what the README shows"
}

settle_in() {
    mkdir -p "$work/checkout" "$work/blocks"
    # With its times, by which cargo sees that nothing of the copy is left to build.
    (cd "$here" && cargo build --locked --quiet --bins --examples)
    local item
    for item in Cargo.toml Cargo.lock src bin bench examples scripts tests docs README.md; do
        cp -Rp "$here/$item" "$work/checkout/"
    done
    install_as_built
    unset AMQP_URL RUST_LOG
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target}
    export CARGO_INSTALL_ROOT=$work/installed
    export PATH=$work/cargo:$work/installed/bin:$PATH
    cd "$work/checkout"
}

# Puts a cargo before the real one that installs what is built for the tests: what it does without
# that differs in the optimiser alone, which takes minutes.
install_as_built() {
    mkdir "$work/cargo"
    cat >"$work/cargo/cargo" <<SH
#!/bin/sh
[ "\$1" != install ] || { shift; set -- install --debug "\$@"; }
exec '$(command -v cargo)' "\$@"
SH
    chmod +x "$work/cargo/cargo"
}

split_blocks() {
    awk -v out="$work/blocks" '
        /^<!-- not run here: / { skip = 1; print "readme: " substr($0, 6, length($0) - 9); next }
        /^```/ && file != "" { close(file); file = ""; next }
        /^```sh$/ {
            if (skip) { skip = 0; file = "/dev/null"; next }
            name = sprintf("%s/%02d", out, ++count)
            file = name ".sh"
            next
        }
        /^```text$/ { file = name ".expected"; next }
        /^```/ { file = "/dev/null"; next }
        file != "" { print > file }
    ' README.md
    [ -e "$work/blocks/01.sh" ] || fail "README.md has no sh block"
}

# ---- one block ----

run_block() {
    echo "readme: $(tail -n 1 "$1.sh")"
    if grep -qs '^\^C$' "$1.expected"; then
        start_lasting "$1"
        return
    fi
    bash -eu -o pipefail "$1.sh" </dev/null >"$1.real" 2>&1 || { cat "$1.real" >&2; fail "that block failed"; }
    compare "$1"
    [ -z "$waiting" ] || interrupt_lasting
}

# In a process group of its own, as a terminal would have it.
start_lasting() {
    waiting=$1
    : >"$waiting.real"
    set -m
    bash -eu -o pipefail "$waiting.sh" </dev/null >"$waiting.real" 2>&1 &
    group=$!
    set +m
    await "its first line" shows "$waiting" 1
}

interrupt_lasting() {
    local lines
    lines=$(sed '/^\^C$/,$d' "$waiting.expected" | grep -c '')
    await "the lines above its ^C" shows "$waiting" "$lines"
    kill -INT -- -"$group"
    await "its end" gone "$group"
    wait "$group" || fail "stopped with Ctrl-C, it ended with status $?"
    group=''
    compare "$waiting"
    waiting=''
}

shows() {
    [ "$(grep -c '' "$1.real")" -ge "$2" ]
}

gone() {
    ! kill -0 "$1" 2>/dev/null
}

await() {
    local what=$1 deadline=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        if [ $SECONDS -ge $deadline ]; then
            cat "$waiting.real" >&2
            fail "waited $PATIENCE s for $what"
        fi
        sleep 0.1
    done
}

compare() {
    [ -e "$1.expected" ] || return 0
    diff -u <(grep -v '^\^C$' "$1.expected" | plain) <(plain <"$1.real") >&2 ||
        fail "the README shows (-) what was not printed (+)"
}

plain() {
    # Said only by a stop that takes more than a moment.
    sed -E -e '/ WARN  stopping; /d' \
        -e 's/^[0-9-]+T[0-9:.]+Z /TIME /' -e 's/127\.0\.0\.1:[0-9]+/ADDRESS/' \
        -e 's/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}  [0-9-]+T[0-9:]+Z /ID  TIME /' \
        -e 's/in [0-9.]+ s$/in N s/' -e 's/"seconds":[0-9.e-]+/"seconds":N/'
}

# ---- what stands in running text and tables, there and in docs/ ----

inline() {
    # shellcheck disable=SC2016  # backticks of Markdown
    awk '/^ *```/ { block = !block; next } !block' README.md docs/*.md |
        grep -o '`[^`]*`' | tr -d '`' | grep "$1"
}

# An unknown option or a bad value is refused before --help is come to.
check_options() {
    local command
    # What follows -- is for the command that a worker runs.
    inline '^\(producer\|worker\|queuectl\)\( \|$\)' | sed 's/ -- .*//' | sort -u >"$work/commands"
    while read -r command; do
        # shellcheck disable=SC2086  # words as the shell would split them
        $command --help >/dev/null </dev/null || fail "'$command' is not understood"
    done <"$work/commands"
}

check_examples() {
    local command
    inline '^cargo run --example ' | sort -u >"$work/commands"
    while read -r command; do
        [ -e "examples/${command##* }.rs" ] || fail "'$command': no such example"
    done <"$work/commands"
}

check_management() {
    local command
    command=$(inline '^RW_MANAGEMENT=1 ')
    echo "readme: $command"
    bash -c "$command" >"$work/management" 2>&1 || { cat "$work/management" >&2; fail "that failed"; }
    grep -q 'management: http://' "$work/management" || fail "it does not tell the page's address"
    scripts/broker.sh stop
    echo "readme: not run: $(inline '^docker run ')"
}

# ---- the end ----

fail() {
    echo "readme: FAILED: $*" >&2
    exit 1
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    [ -z "$group" ] || kill -KILL -- -"$group" 2>/dev/null || true
    "$work/checkout/scripts/broker.sh" stop 2>/dev/null || true
    cd "$here"
    rm -rf "$work"
    exit $status
}

main
