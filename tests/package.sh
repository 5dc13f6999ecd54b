#!/usr/bin/env bash
# Builds the packages of scripts/package.sh, and uses them as on other machines: the static program in an
# empty root, over AMQP and TLS, as a link, without root and as the first process; the image; the Debian
# package beside Debian's `worker`, from its installation to its purge. It needs root, for the image buildah,
# and for the package debootstrap and a mirror. Not a step of scripts/test.sh, because a release build takes
# minutes.
# Usage: tests/package.sh [FOLDER]; packages that are in FOLDER are not built. RW_DEBIAN names the release
# of Debian, stable by default.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
NOBODY=65534

main() {
    [ "$(id -u)" = 0 ] || { echo "package: skipped, because chroot needs root"; exit 77; }
    work=$(mktemp -d) skipped=
    trap finish EXIT
    trap 'exit 143' HUP INT TERM
    if [ -n "${1:-}" ]; then
        packages=$(cd "$1" && pwd -P)
    else
        packages=$work/packages
        SOURCE_DATE_EPOCH=$(date +%s)
        export SOURCE_DATE_EPOCH
        "$here/scripts/package.sh" "$packages" >/dev/null
        same_bytes
    fi
    (cd "$packages" && sha256sum --quiet --check SHA256SUMS) || fail "the checksums do not fit"
    unpack
    start_broker
    over_amqp
    over_tls
    as_first_process "$empty" /bin/rabbit-work
    the_image
    if ls "$packages"/*.deb >/dev/null 2>&1; then
        the_unit
        beside_debians_worker
    fi
    echo "package: the program and the packages work where nothing else is${skipped:+; skipped:$skipped}"
}

# Built again of a copy, in another place.
same_bytes() {
    say "built elsewhere, the bytes are the same"
    mkdir "$work/copy"
    (cd "$here" && git ls-files -z --cached --others --exclude-standard --deduplicate | xargs -0 cp -P --parents -t "$work/copy")
    CARGO_TARGET_DIR=$work/target "$work/copy/scripts/package.sh" "$work/again" >/dev/null
    rm -rf "$work/target"
    cmp "$packages/SHA256SUMS" "$work/again/SHA256SUMS" || fail "the second time, the bytes differ"
}

# A root with the tarball, and nothing else.
unpack() {
    say "the tarball"
    empty=$work/empty
    mkdir "$empty"
    tar -xzf "$packages"/rabbit-work-*.tar.gz --strip-components=1 -C "$empty"
    local file
    for file in bin/rabbit-work share/man/man1/worker.1 share/man/man1/rabbit-work-queue-dead-list.1 \
        share/bash-completion/completions/rabbit-work share/zsh/site-functions/_worker \
        share/fish/vendor_completions.d/queuectl.fish share/doc/rabbit-work/LICENSE-MIT \
        share/doc/rabbit-work/LICENSE-APACHE share/doc/rabbit-work/third-party.txt; do
        [ -f "$empty/$file" ] || fail "the tarball has no $file"
    done
    ! grep -qaF "$here" "$empty/bin/rabbit-work" || fail "the program contains $here"
}

# ---- in the empty root ----

# alone PROGRAM ARGUMENTS..., without a variable of this shell.
alone() {
    local program=$1
    shift
    env -i "${variables[@]}" "$(command -v chroot)" --userspec=$NOBODY:$NOBODY "$empty" "/bin/$program" "$@"
}

over_amqp() {
    say "in an empty root"
    variables=(RUST_LOG=error AMQP_URL="$url")
    alone rabbit-work producer one | grep -qxF " [x] Sent 'one'" || fail "it did not publish"
    alone producer two >/dev/null
    alone queuectl status --json | grep -qF '"ready":2,' || fail "it did not count"
    alone rabbit-work worker --drain --threads 1 2>/dev/null | grep -cF '[x] Received' | grep -qx 2 ||
        fail "it did not run the tasks"
    alone worker --drain -- /bin/rabbit-work --version 2>"$work/log" || fail "it did not end: $(cat "$work/log")"
}

over_tls() {
    say "over TLS"
    local address=amqps://127.0.0.1:$tls_port
    cp "$work/ca.pem" "$empty/ca.pem"
    variables=(RUST_LOG=error AMQP_URL="$address")
    refuses 2 "no authority is trusted: this system has none" producer one
    alone producer --ca /ca.pem one >/dev/null || fail "it did not publish over TLS"
    variables+=(SSL_CERT_FILE=/ca.pem)
    alone producer two >/dev/null || fail "it did not find the authorities of the system"
    alone worker --drain --print --threads 1 2>/dev/null | grep -cF '[x] Received' | grep -qx 2 ||
        fail "it did not run the tasks over TLS"
}

# refuses STATUS TEXT PROGRAM ARGUMENTS...
refuses() {
    local wanted=$1 text=$2 status=0
    shift 2
    alone "$@" >/dev/null 2>"$work/log" || status=$?
    [ $status = "$wanted" ] || fail "$* ended with $status, not $wanted: $(cat "$work/log")"
    grep -qF "$text" "$work/log" || fail "$* did not say '$text': $(cat "$work/log")"
}

# as_first_process ROOT PROGRAM: without root, and with the number 1. It then starts a second process, which
# works, and passes signals on to it.
as_first_process() {
    say "as the first process in $(basename "$1")"
    local pid status=0
    mkdir -p "$1/proc"
    env -i AMQP_URL="$url" "$(command -v unshare)" --pid --fork --kill-child --mount-proc="$1/proc" \
        "$(command -v chroot)" --userspec=$NOBODY:$NOBODY "$1" "$2" worker -- "$2" --version \
        >"$work/said" 2>"$work/log" &
    local outside=$!
    alone producer one >/dev/null
    await 'rabbit-work ' "$work/said"
    pid=$(pgrep -P $outside)
    kill -TERM "$pid"
    wait $outside || status=$?
    [ $status = 0 ] || fail "SIGTERM ended the first process with $status: $(cat "$work/log")"
}

# ---- the image ----

the_image() {
    say "the image"
    command -v buildah >/dev/null || { skip "the image (buildah is missing)"; return 0; }
    images bud --isolation chroot --tag rabbit-work "$packages" >"$work/bud" 2>&1 ||
        fail "the image cannot be built: $(tail -n 5 "$work/bud")"
    container=$(images from rabbit-work)
    local root
    root=$(images mount "$container")
    in_image producer one | grep -qxF " [x] Sent 'one'" || fail "the image does not publish"
    in_image worker --drain -- /usr/bin/rabbit-work --version 2>"$work/log" ||
        fail "the image runs no command: $(cat "$work/log")"
    [ "$(images inspect --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.StopSignal}}' "$container")" = "$NOBODY:$NOBODY SIGTERM" ] ||
        fail "the image does not start as nobody, or is not stopped by SIGTERM"
    cmp -s "$root/etc/ssl/certs/ca-certificates.crt" /etc/ssl/certs/ca-certificates.crt || fail "the image has no authorities"
    [ "$(stat -c %a "$root/tmp")" = 1777 ] || fail "the image has no /tmp for everybody"
    as_first_process "$root" /usr/bin/rabbit-work
}

# in_image ARGUMENTS...: as the image says it.
in_image() {
    local entrypoint
    entrypoint=$(images inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
    images run --isolation chroot --env RUST_LOG=error --env AMQP_URL="$url" "$container" -- "$entrypoint" "$@"
}

images() {
    buildah --storage-driver vfs --root "$work/images" --runroot "$work/images.run" "$@"
}

# ---- the Debian package ----

the_unit() {
    say "the systemd unit"
    mkdir "$work/unit"
    dpkg-deb -x "$packages"/*.deb "$work/unit"
    mkdir -p "$work/unit/usr/local/lib/rabbit-work"
    install -m 755 /dev/null "$work/unit/usr/local/lib/rabbit-work/mail"
    command -v systemd-analyze >/dev/null || { skip "the unit (systemd-analyze is missing)"; return 0; }
    cp "$work/unit/usr/lib/systemd/system/rabbit-work@.service" "$work/rabbit-work@mail.service"
    # The verdict is about this machine, which has no /usr/bin/rabbit-work.
    sed -i "s#=/usr/bin/rabbit-work#=$work/unit/usr/bin/rabbit-work#" "$work/rabbit-work@mail.service"
    systemd-analyze verify --man=no "$work/rabbit-work@mail.service" 2>&1 |
        tee "$work/verdict" | grep -F rabbit-work@mail && fail "systemd refuses the unit"
    return 0
}

beside_debians_worker() {
    say "the Debian package"
    command -v debootstrap >/dev/null || { skip "the Debian package (debootstrap is missing)"; return 0; }
    local root=$work/debian deb=("$packages"/*.deb)
    debootstrap --variant=minbase --include=man-db "${RW_DEBIAN:-stable}" "$root" >"$work/debootstrap" 2>&1 ||
        fail "debootstrap failed: $(tail -n 3 "$work/debootstrap")"
    find "$root/etc" "$root/usr" | sort >"$work/before"
    cp "${deb[0]}" "$root/tmp/rabbit-work.deb"
    inside apt-get install -y --no-install-recommends /tmp/rabbit-work.deb worker >"$work/apt" 2>&1 ||
        fail "it cannot be installed: $(tail -n 5 "$work/apt")"
    inside dpkg -S /usr/bin/worker | grep -qx 'worker: /usr/bin/worker' || fail "/usr/bin/worker is not Debian's"
    inside queuectl --version >/dev/null || fail "it does not run"
    inside env AMQP_URL="$url" producer one >/dev/null || fail "the installed program does not publish"
    inside env AMQP_URL="$url" rabbit-work worker --drain -- grep -qx one 2>/dev/null ||
        fail "the installed program runs no command"
    [ "$(inside stat -c %a:%U /etc/rabbit-work/rabbit-work.env)" = 600:root ] || fail "others may read its settings"
    inside man --warnings -l /usr/share/man/man1/queuectl-dead-list.1.gz 2>&1 | grep -q 'rabbit-work queue dead list' ||
        fail "the page of queuectl dead list cannot be read"
    echo "# ours" >>"$root/etc/rabbit-work/rabbit-work.env"
    inside dpkg --remove rabbit-work >/dev/null
    [ -e "$root/etc/rabbit-work/rabbit-work.env" ] || fail "it does not keep its settings when removed"
    inside dpkg --purge rabbit-work >/dev/null
    find "$root" -xdev \( -name 'rabbit-work*' -o -name 'queuectl*' \) ! -path "$root/tmp/*" >"$work/left"
    [ ! -s "$work/left" ] || fail "a purge leaves behind: $(cat "$work/left")"
    inside dpkg -V worker || fail "Debian's worker was changed"
}

inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        chroot "$work/debian" "$@"
}

# ---- the broker ----

# With TLS for one side: clients need no certificates.
start_broker() {
    say "a broker"
    RW_CERTIFICATES=$work cargo test --locked --manifest-path "$here/Cargo.toml" --test it \
        -- --ignored --exact own_tls::certificates_for_other_tests \
        >"$work/certificates" 2>&1 || fail "no certificates: $(tail -n 5 "$work/certificates")"
    # For the user of the broker.
    chmod 755 "$work"
    tls_port=$(free_port)
    mkdir "$work/broker"
    cat >"$work/broker/extra.conf" <<CONF
listeners.ssl.1 = 127.0.0.1:$tls_port
ssl_options.cacertfile = $work/ca.pem
ssl_options.certfile = $work/broker.pem
ssl_options.keyfile = $work/broker-key.pem
ssl_options.verify = verify_none
CONF
    url=$(env -u AMQP_URL "$here/scripts/broker.sh" --dir "$work/broker" start)
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# ---- the end ----

# await TEXT FILE
await() {
    local count
    for ((count = 0; count < 600; count++)); do
        ! grep -qF "$1" "$2" || return 0
        sleep 0.1
    done
    fail "no '$1' within 60 s: $(cat "$2")"
}

# skip WHAT, which the last line then names.
skip() {
    skipped="$skipped $1"
    say "skipped: $1"
}

say() {
    echo "package: $1"
}

fail() {
    echo "package: $1" >&2
    exit 1
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    env -u AMQP_URL "$here/scripts/broker.sh" --dir "$work/broker" stop >/dev/null 2>&1 || true
    [ -z "${container:-}" ] || images unmount "$container" >/dev/null 2>&1 || true
    rm -rf "$work"
    exit $status
}

main "$@"
