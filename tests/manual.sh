#!/usr/bin/env bash
# Installs the man pages and completions below a temporary prefix, and holds them against what the
# commands themselves say: a page for each command and subcommand, every option of --help in it, the
# sections that a page has, every kind of event, no reference to a page that is not there, and
# completions that bash takes.
# Usage: tests/manual.sh
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PROGRAMS="producer queuectl rabbit-work worker"

main() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if [ -z "${RW_BIN:-}" ]; then
        cargo build --quiet --manifest-path "$here/Cargo.toml" --bins
    fi
    PATH=${RW_BIN:-${CARGO_TARGET_DIR:-$here/target}/debug}:$PATH
    share=$(cd "$work" && "$here/scripts/manual.sh" --install prefix)
    [ "$share" = "$work/prefix/share" ] || fail "it did not say where it installed them"
    local program command
    for program in $PROGRAMS; do
        check_pages "$program"
    done
    for command in producer queuectl worker "rabbit-work producer" "rabbit-work queue" "rabbit-work worker"; do
        # shellcheck disable=SC2086 # Words.
        check_completions $command
    done
    check_events
    check_references
    echo "manual: every command, subcommand and option has its place"
}

# A command's page, and those of its subcommands; its words are the arguments.
check_pages() {
    local name page option section subcommand
    name=$(IFS=-; echo "$*")
    page=$share/man/man1/$name.1
    [ -e "$page" ] || fail "there is no page $name.1"
    "$@" --help >"$work/help"
    # What begins a paragraph, without its markup.
    sed -nE '/^\\fB/{s/\\f[BIR]//g; s/\\-/-/g; p;}' "$page" >"$work/page"
    local options subcommands usage
    usage=$(sed -n 's/^Usage: //p' "$work/help")
    grep -qxF "${usage//-/\\-}" "$page" || fail "the synopsis of $name.1 is not '$usage'"
    options=$(sed -nE 's/^ +(-[a-zA-Z], )?(--[a-z-]+).*/\2/p' "$work/help")
    [ -n "$options" ] || fail "$* --help shows no options"
    for option in $options; do
        grep -qE "^(-[a-zA-Z], )?$option( |\[|$)" "$work/page" || fail "$name.1 has no $option"
    done
    # The page of all commands leaves to their pages what they share.
    local sections=("EXIT STATUS" DURATIONS ENVIRONMENT FILES EXAMPLES "SEE ALSO")
    [ "$name" != rabbit-work ] || sections=(NAMES EXAMPLES "SEE ALSO")
    for section in "${sections[@]}"; do
        grep -qxF ".SH \"$section\"" "$page" || fail "$name.1 has no section $section"
    done
    [ ! -e "${page%.1}-help.1" ] || fail "$name-help.1 is a page about help"
    subcommands=$(sed -nE '/^Commands:$/,/^$/s/^  ([a-z]+) .*/\1/p' "$work/help")
    for subcommand in $subcommands; do
        [ "$subcommand" = help ] || check_pages "$@" "$subcommand"
    done
}

# As src/worker/event.rs names them, but for those of sessions, which --events leaves out.
check_events() {
    local kind kinds page
    kinds=$(sed -nE 's/^ *EventKind::[A-Z][a-z]+ => "([a-z]+)",$/\1/p' "$here/src/worker/event.rs" |
        grep -vx 'connected\|disconnected')
    [ -n "$kinds" ] || fail "src/worker/event.rs names no kinds of event"
    for kind in $kinds; do
        for page in worker rabbit-work-worker; do
            grep -qxF "\\fB$kind\\fR" "$share/man/man1/$page.1" || fail "$page.1 has no event $kind"
        done
    done
}

# What the pages refer to as NAME(1).
check_references() {
    local name
    sed 's/\\-/-/g' "$share"/man/man1/*.1 | grep -oE '[a-z][a-z-]*\(1\)' | sort -u >"$work/references"
    while read -r name; do
        [ -e "$share/man/man1/${name%(1)}.1" ] || fail "$name is referred to and not there"
    done <"$work/references"
}

# The words of a command are the arguments.
check_completions() {
    local file=$share/bash-completion/completions/$1
    bash -n "$file"
    # As the shell asks for what may follow `COMMAND --queue-t`.
    # shellcheck disable=SC2016 # It is for the shell that has them loaded.
    local ask='. "$1"; shift; read -r _ _ function _ < <(complete -p "$1" | sed "s/.* -F /- - /")
        COMP_WORDS=("$@" --queue-t) COMP_CWORD=$#
        "$function" "$1" --queue-t "${!#}"; echo "${COMPREPLY[@]}"'
    local offered
    offered=$(bash --norc -eu -c "$ask" ask "$file" "$@")
    [ "$offered" = --queue-type ] || fail "bash offers '$offered' for $* --queue-t"
    [ -e "$share/zsh/site-functions/_$1" ] || fail "there are no completions of $1 for zsh"
    [ -e "$share/fish/vendor_completions.d/$1.fish" ] || fail "there are none of $1 for fish"
}

fail() {
    echo "manual: $1" >&2
    exit 1
}

main "$@"
