#!/usr/bin/env bash
# Builds what a release publishes: a static program; a tarball, a Debian package and an image's contents with it;
# and their checksums.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
authorities=/etc/ssl/certs/ca-certificates.crt

usage() {
    cat <<'TEXT'
usage: scripts/package.sh [FOLDER]

Builds a static rabbit-work for this machine's architecture, and writes to FOLDER (default dist/):

  rabbit-work-VERSION-TARGET.tar.gz   the program, links for the short names, man pages, completions,
                                      licences; unpack it below /usr/local
  rabbit-work_VERSION_ARCH.deb        the same for Debian and Ubuntu, with rabbit-work@.service and
                                      /etc/rabbit-work/; not without dpkg-deb
  Dockerfile, rabbit-work-image.tar   an image with the program, its links, and the certificate
                                      authorities of this machine: docker build -t rabbit-work FOLDER
  SHA256SUMS                          their checksums

The same sources and the same Rust give the same bytes, wherever they are built; the image has the
authorities of this machine besides. The time in the archives is SOURCE_DATE_EPOCH, or that of the last
commit. The Debian package has no /usr/bin/worker, which belongs to Debian's package
worker.

It needs Rust with the target *-linux-musl (rustup adds it), a C compiler, GNU tar and
/etc/ssl/certs/ca-certificates.crt.
Exit: 0 done, 1 a step failed, 2 usage, 69 a tool is missing.
TEXT
}

main() {
    [ $# -le 1 ] || misused
    case ${1:-} in
        -h | --help) usage; exit 0 ;;
        -*) misused ;;
    esac
    local folder=${1:-$here/dist}
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd -P)
    cd "$here"
    umask 022
    export LC_ALL=C TZ=UTC
    find_names
    need_tools
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT

    build
    stage
    rm -f "$folder"/rabbit-work[-_]*.tar.gz "$folder"/rabbit-work_*.deb "$folder/SHA256SUMS"
    pack "$work" "$name" | gzip -9n >"$folder/$name.tar.gz"
    pack_image
    if command -v dpkg-deb >/dev/null; then
        pack_debian "$folder/rabbit-work_${version}_$debian.deb"
    else
        echo "package.sh: no .deb, for dpkg-deb is missing" >&2
    fi
    cd "$folder"
    sha256sum Dockerfile rabbit-work[-_]* >SHA256SUMS
    ls -l Dockerfile rabbit-work[-_]* SHA256SUMS
}

find_names() {
    version=$(sed -n '/^\[package\]/,/^\[lib\]/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
    case $(uname -m) in
        x86_64 | amd64) target=x86_64-unknown-linux-musl debian=amd64 ;;
        aarch64 | arm64) target=aarch64-unknown-linux-musl debian=arm64 ;;
        *) missing "a known architecture" "this script knows x86_64 and aarch64, not $(uname -m)" ;;
    esac
    name=rabbit-work-$version-$target
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date -r Cargo.toml +%s)}
    export SOURCE_DATE_EPOCH
}

need_tools() {
    command -v cargo >/dev/null || missing "cargo" "install Rust: https://rustup.rs"
    command -v cc >/dev/null || missing "a C compiler" "Debian, Ubuntu: apt-get install gcc libc6-dev"
    tar --version 2>/dev/null | grep -q GNU || missing "GNU tar" "install it as tar"
    [ -e "$authorities" ] || missing "$authorities" "Debian, Ubuntu: apt-get install ca-certificates"
    [ ! -d "$(rustc --print target-libdir --target "$target")" ] || return 0
    command -v rustup >/dev/null || missing "Rust for $target" "install Rust by rustup: https://rustup.rs"
    rustup target add "$target"
}

# Paths of this machine are no part of the program. Only ring has parts in C, which use no libc: so any
# compiler for this architecture will do, also one for another libc.
build() {
    local compiler=CC_${target//-/_} folder flags=
    for folder in "$here=rabbit-work" "${CARGO_HOME:-$HOME/.cargo}=cargo" ${CARGO_TARGET_DIR:+"$CARGO_TARGET_DIR=target"}; do
        flags=$flags${flags:+$'\x1f'}--remap-path-prefix=$folder
    done
    env "$compiler=${!compiler:-cc}" CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_ENCODED_RUSTFLAGS="$flags" \
        cargo build --locked --release --target "$target" --bin rabbit-work
    program=${CARGO_TARGET_DIR:-$here/target}/$target/release/rabbit-work
    "$program" --version | grep -qx "rabbit-work $version"
}

# ---- the tree of the tarball ----

stage() {
    tree=$work/$name
    install -D "$program" "$tree/bin/rabbit-work"
    local short
    for short in producer worker queuectl; do
        ln -s rabbit-work "$tree/bin/$short"
    done
    scripts/manual.sh --install "$tree" >/dev/null
    local doc=$tree/share/doc/rabbit-work
    mkdir -p "$doc"
    cp LICENSE-APACHE LICENSE-MIT CHANGELOG.md README.md "$doc/"
    third_parties >"$doc/third-party.txt"
}

# What is linked into the program, and on what terms.
third_parties() {
    echo "The program contains these libraries, each under the licence that follows its name."
    echo
    cargo tree --locked --edges normal --target "$target" --prefix none --format '{p}: {l}' |
        sed -e 's/ (proc-macro)//' -e 's/ (\*)$//' -e '/^rabbit-work /d' | sort -u
}

# pack FOLDER MEMBER, to standard output.
pack() {
    tar --create --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        --directory "$1" "$2"
}

# ---- the image ----

# A folder for temporary files, because commands and the health file need one.
pack_image() {
    local root=$work/image
    mkdir -p "$root/usr"
    cp -R "$tree/bin" "$root/usr/"
    install -D -m 644 "$authorities" "$root$authorities"
    install -d -m 1777 "$root/tmp"
    pack "$root" . >"$folder/rabbit-work-image.tar"
    cp packaging/Dockerfile "$folder/"
}

# ---- the Debian package ----

pack_debian() {
    local root=$work/debian
    mkdir -p "$root/DEBIAN" "$root/usr"
    cp -R "$tree/bin" "$tree/share" "$root/usr/"
    rm "$root/usr/bin/worker"
    as_debian_wants_it "$root/usr/share"
    install -D -m 644 packaging/rabbit-work@.service "$root/usr/lib/systemd/system/rabbit-work@.service"
    # Its files have passwords, also those that the administrator adds.
    install -d -m 700 "$root/etc/rabbit-work"
    install -m 600 packaging/rabbit-work.env "$root/etc/rabbit-work/rabbit-work.env"
    echo /etc/rabbit-work/rabbit-work.env >"$root/DEBIAN/conffiles"
    install -m 755 packaging/prerm packaging/postrm "$root/DEBIAN/"
    control "$root" >"$root/DEBIAN/control"
    (cd "$root" && find usr etc -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "$1" >/dev/null
}

# Pages and completions of `worker` are those of Debian's package. The pages of the other short names are
# links to the long ones, which refer to each other.
as_debian_wants_it() {
    local share=$1 page
    mv "$share/zsh/site-functions" "$share/zsh/vendor-completions"
    rm "$share/bash-completion/completions/worker" "$share/zsh/vendor-completions/_worker" \
        "$share/fish/vendor_completions.d/worker.fish" "$share/man/man1/worker.1"
    for page in "$share"/man/man1/*.1; do
        page=${page##*/}
        case $page in
            rabbit-work*) gzip -9n "$share/man/man1/$page"; continue ;;
            producer*) ln -s "rabbit-work-$page.gz" "$share/man/man1/$page.gz" ;;
            queuectl*) ln -s "rabbit-work-queue${page#queuectl}.gz" "$share/man/man1/$page.gz" ;;
        esac
        rm "$share/man/man1/$page"
    done
    local doc=$share/doc/rabbit-work
    gzip -9n "$doc/CHANGELOG.md"
    mv "$doc/CHANGELOG.md.gz" "$doc/changelog.gz"
    { echo "rabbit-work is licensed under MIT or Apache 2.0, as you like."; echo; cat "$doc/LICENSE-MIT" "$doc/LICENSE-APACHE"; } >"$doc/copyright"
    rm "$doc/LICENSE-MIT" "$doc/LICENSE-APACHE" "$doc/README.md"
}

control() {
    cat <<TEXT
Package: rabbit-work
Version: $version
Architecture: $debian
Maintainer: The rabbit-work authors <rabbit-work@packages.invalid>
Installed-Size: $(du -sk --apparent-size "$1/usr" | cut -f1)
Section: net
Priority: optional
Recommends: ca-certificates
Description: work queues on RabbitMQ for shells
 rabbit-work puts tasks on a RabbitMQ queue, each confirmed by the broker, and
 runs a command for each of them: in several threads, on any number of machines,
 with retries, dead letters, time limits and clean stops.
 .
 /usr/bin/producer and /usr/bin/queuectl are short names of its subcommands.
TEXT
}

# ---- the end ----

misused() {
    usage >&2
    exit 2
}

missing() {
    echo "package.sh: $1 is missing; $2" >&2
    exit 69
}

main "$@"
