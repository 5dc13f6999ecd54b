#!/usr/bin/env bash
# Draws docs/tour.svg, the terminal in the README, from a real run of the commands below.
# Usage: scripts/record.sh [FILE]
# RW_BIN set: the commands in that folder are used, and nothing is built.
set -eu -o pipefail

COLUMNS_SHOWN=104
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Each line is typed into one shell.
session() {
    cat <<'SH'
export AMQP_URL=$(scripts/broker.sh start) RUST_LOG=error
seq -f 'photo %g' 6 | producer --queue photos --lines
scripts/broker.sh stop --keep && scripts/broker.sh start      # the tasks survive a restart
worker --queue photos --threads 3 --drain --max-attempts 2 -- ./resize {} || echo "exit status $?"
queuectl --queue photos dead list
queuectl --queue photos dead replay
SH
}

main() {
    local file=${1:-$here/docs/tour.svg}
    work=$(mktemp -d)
    trap finish EXIT
    if [ -z "${RW_BIN:-}" ]; then
        cargo build --locked --quiet --manifest-path "$here/Cargo.toml" --bins
    fi
    PATH=${RW_BIN:-${CARGO_TARGET_DIR:-$here/target}/debug}:$PATH
    unset AMQP_URL
    cp -R "$here/scripts" "$work/"
    write_job "$work/resize"
    run >"$work/recorded"
    draw <"$work/recorded" >"$work/svg"
    cp "$work/svg" "$file"
    echo "$file"
}

# Waits as many tenths of a second as the photo's number, so that the order is always the same.
write_job() {
    cat >"$1" <<'SH'
#!/bin/sh
sleep "0.${1#photo }"
[ "$1" != 'photo 4' ] || { echo "$1: damaged file" >&2; exit 1; }
echo "resized $1"
SH
    chmod +x "$1"
}

# Paths, ports, ids and times become fixed ones, so that a second run draws the same.
run() {
    session | (cd "$work" && bash -c '
        while IFS= read -r line; do
            printf "$ %s\n" "$line"
            eval "$line" </dev/null 2>&1
        done') |
        sed -E -e "s#$(cd "$work" && pwd -P)#~/rabbit-work#" -e 's/127\.0\.0\.1:[0-9]+/127.0.0.1:25311/' \
            -e 's/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/0b5e0ad2-6c3f-4d3c-9f06-1f4a5c0a7f11/' \
            -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z/2026-01-05T10:22:01Z/'
}

# Draws a terminal with its own background, for light and dark pages.
draw() {
    fold -w $COLUMNS_SHOWN | awk -v columns=$COLUMNS_SHOWN '
        function escape(text) {
            gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text)
            return text
        }
        { lines[NR] = $0 }
        END {
            line_height = 18; margin = 16; width = columns * 7.83 + 2 * margin
            height = NR * line_height + 2 * margin
            printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\">\n", width, height
            print "  <title>Tasks survive a restart of the broker; one fails twice, is a dead letter, and is replayed</title>"
            printf "  <rect width=\"%d\" height=\"%d\" rx=\"8\" fill=\"#1e2430\"/>\n", width, height
            print "  <g font-family=\"ui-monospace, Menlo, Consolas, &quot;DejaVu Sans Mono&quot;, monospace\" font-size=\"13\" fill=\"#d8dee9\" xml:space=\"preserve\" style=\"white-space: pre\">"
            for (i = 1; i <= NR; i++) {
                text = escape(lines[i])
                if (sub(/^\$ /, "", text)) {
                    comment = ""
                    if (match(text, / +# .*$/)) {
                        comment = "<tspan fill=\"#8b98ab\">" substr(text, RSTART) "</tspan>"
                        text = substr(text, 1, RSTART - 1)
                    }
                    text = "<tspan fill=\"#a3be8c\">$</tspan> <tspan fill=\"#ffffff\" font-weight=\"bold\">" text "</tspan>" comment
                }
                printf "    <text x=\"%d\" y=\"%d\">%s</text>\n", margin, margin + i * line_height - 5, text
            }
            print "  </g>"
            print "</svg>"
        }'
}

finish() {
    local status=$?
    "$work/scripts/broker.sh" stop >/dev/null 2>&1 || true
    rm -rf "$work"
    exit $status
}

main "$@"
